"""Sums of products behind a gradient tensor of a graph, found and added up in larger products.

The functions search a TF1 graph, or that of a `tf.function`, from the sum back to its products, and
return new tensors; the graph's existing ops are not changed, and those no longer needed are never
run. `product_type` is the type of the products' ops, and `add_products(ops, group_size, dtype)`
makes the larger products: tensors, preferably of `dtype`, with the sum of the ops' outputs.
"""

import tensorflow as tf

_SUMS = ("AddN", "AddV2", "Add")
# What else may lie between a product and the parameter: ops linear in their first input.
_LINEAR = ("Cast", "Identity", "BlocksparseL2NormalizeGrad", "BlocksparseMatmulDG")


def check_symbolic(who, tensor, instead):
    """`tensor` is one of a graph; `instead` says what eager code does."""
    if not isinstance(tensor, tf.Tensor) or tf.executing_eagerly():
        raise TypeError(
            f"{who}: a symbolic tensor is needed (a TF1 graph, or inside tf.function); {instead}. "
            f"Received: {type(tensor).__name__}"
        )


def regrouped(tensor, product_type, add_products, group_size):
    """`tensor` with its products in groups; itself if it holds fewer than two."""
    if len(find_products(tensor, product_type)) < 2:
        return tensor
    return _Regrouping(product_type, add_products, group_size).sum(_terms(tensor), tensor.dtype)


def find_products(tensor, product_type):
    """The ops of that type whose sum `tensor` is, up to linear ops."""
    products = []
    for term in _terms(tensor):
        if term.op.type == product_type:
            products.append(term.op)
        elif term.op.type in _LINEAR:
            products += find_products(term.op.inputs[0], product_type)
    return products


class _Regrouping:
    def __init__(self, product_type, add_products, group_size):
        self.product_type = product_type
        self.add_products = add_products
        self.group_size = group_size

    def sum(self, terms, dtype):
        """The sum of `terms` in `dtype`, with the products in them grouped."""
        products, linear, others = [], {}, []
        for term in terms:
            if term.op.type == self.product_type:
                products.append(term.op)
            elif term.op.type in _LINEAR and find_products(term, self.product_type):
                linear.setdefault(_linear_key(term), []).append(term)
            else:
                others.append(term)
        sums = self.add_products(products, self.group_size, dtype)
        sums += [self._sum_behind_linear(alike) for alike in linear.values()]
        total = tf.add_n([tf.cast(term, dtype) for term in sums])
        for other in others:  # not by add_n: they may broadcast
            total += tf.cast(other, dtype)
        return total

    def _sum_behind_linear(self, alike):
        """L(a) + L(b) + ... as L(a + b + ...), the inner sum grouped."""
        op = alike[0].op
        terms = [term for tensor in alike for term in _terms(tensor.op.inputs[0])]
        if len(alike) == 1 and len(find_products(alike[0], self.product_type)) < 2:
            return alike[0]
        if op.type == "Cast" and alike[0].dtype == tf.float32:  # so can the products be
            return self.sum(terms, tf.float32)
        inputs = [self.sum(terms, op.inputs[0].dtype), *op.inputs[1:]]
        copy = op.graph.create_op(
            op.type,
            inputs,
            [output.dtype for output in op.outputs],
            attrs=_attrs(op),
            name=f"{op.name}/grouped",
        )
        return copy.outputs[alike[0].value_index]


def _terms(tensor):
    """The terms of nested sums."""
    terms, to_visit = [], [tensor]
    while to_visit:
        term = to_visit.pop()
        if term.op.type in _SUMS:
            to_visit += list(term.op.inputs)[::-1]
        else:
            terms.append(term)
    return terms


def _linear_key(term):
    """Equal for terms L(a) and L(b) with L(a) + L(b) = L(a + b)."""
    op = term.op
    attrs = tuple((name, attr.SerializeToString()) for name, attr in sorted(_attrs(op).items()))
    return op.type, term.value_index, attrs, tuple(tensor.ref() for tensor in op.inputs[1:])


def _attrs(op):
    return {name: op.node_def.attr[name] for name in op.node_def.attr if not name.startswith("_")}
