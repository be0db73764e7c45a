"""Every error of the pattern modules, with its message."""

import numpy as np
import pytest

from blocksparse import patterns

FORMS = "dense, ba_M, bae_M_E, old_ba_M, rande_M_E, ws_M_PCT, br_M"


@pytest.mark.parametrize(
    "error, message, call",
    [
        (
            ValueError,
            "dense: in_blocks must be 1 or more. Received: 0",
            lambda: patterns.dense(0, 3),
        ),
        (
            TypeError,
            "dense: out_blocks must be an integer. Received: 3.0",
            lambda: patterns.dense(2, 3.0),
        ),
        (
            ValueError,
            "banded: width must be 0 or more. Received: -1",
            lambda: patterns.banded(2, 3, -1),
        ),
        (
            ValueError,
            "block_diagonal: num_groups must be 1 to 2. Received: 3",
            lambda: patterns.block_diagonal(2, 3, 3),
        ),
        (
            ValueError,
            "random: density must be in (0, 1]. Received: 0",
            lambda: patterns.random(2, 3, 0, 0),
        ),
        (
            ValueError,
            "balanced_random: density must be in (0, 1]. Received: nan",
            lambda: patterns.balanced_random(2, 3, float("nan"), 0),
        ),
        (
            TypeError,
            "random: density must be a number. Received: '1'",
            lambda: patterns.random(2, 3, "1", 0),
        ),
        (
            TypeError,
            "random: seed must be a non-negative integer or a numpy Generator. Received: None",
            lambda: patterns.random(2, 3, 0.5, None),
        ),
        (
            TypeError,
            "add_edges: seed must be a non-negative integer or a numpy Generator. Received: -1",
            lambda: patterns.add_edges(np.eye(2), 1, -1),
        ),
        (
            ValueError,
            "barabasi_albert: num_edges must be 1 to 3. Received: 4",
            lambda: patterns.barabasi_albert(4, 4, 0),
        ),
        (
            ValueError,
            "watts_strogatz: num_neighbors must be even. Received: 3",
            lambda: patterns.watts_strogatz(4, 3, 0.5, 0),
        ),
        (
            ValueError,
            "watts_strogatz: rewire_probability must be in [0, 1]. Received: -0.1",
            lambda: patterns.watts_strogatz(4, 2, -0.1, 0),
        ),
        (
            ValueError,
            "watts_strogatz_2d: rewire_probability must be in [0, 1]. Received: 50",
            lambda: patterns.watts_strogatz_2d(4, 2, 50, 0),
        ),
        (
            ValueError,
            "watts_strogatz_2d: height must be a divisor of num_nodes=4. Received: 3",
            lambda: patterns.watts_strogatz_2d(4, 2, 0.5, 0, height=3),
        ),
        (
            ValueError,
            "add_edges: num_extra must be 0 to 1. Received: 2",
            lambda: patterns.add_edges(np.eye(2), 2, 0),
        ),
        (
            ValueError,
            "add_edges: the mask must be symmetric and have its whole diagonal. Received: "
            "symmetric False, 1 of 2 diagonal blocks",
            lambda: patterns.add_edges([[1, 0], [1, 0]], 1, 0),
        ),
        (
            ValueError,
            "add_edges: the mask must be square. Received: shape (2, 3)",
            lambda: patterns.add_edges(np.ones((2, 3)), 1, 0),
        ),
        *(
            (
                ValueError,
                f"from_name: the name must be one of {FORMS}. Received: {name!r}",
                lambda name=name: patterns.from_name(name, 9, 0),
            )
            for name in (
                "er_3",
                "ba",
                "ba_",
                "ba_3_4",
                "ba_2.5",
                "ba_-1",
                "bae_3",
                "ws_3",
                "Dense",
                5,
            )
        ),
        (
            ValueError,
            "from_name: mask 'ba_9' is impossible. barabasi_albert: num_edges must be 1 to 8. "
            "Received: 9",
            lambda: patterns.from_name("ba_9", 9, 0),
        ),
        (
            ValueError,
            "from_name: mask 'br_5' is impossible. br_M: 2M + 1 must be 1 to 9. Received: 11",
            lambda: patterns.from_name("br_5", 9, 0),
        ),
        (
            ValueError,
            "from_name: mask 'old_ba_5' is impossible. add_edges: num_extra must be 0 to 6. "
            "Received: 15",
            lambda: patterns.from_name("old_ba_5", 9, 0),
        ),
        (
            ValueError,
            "find_parameter: the pattern must be one of random, balanced_random, banded, "
            "block_diagonal, barabasi_albert, watts_strogatz, watts_strogatz_2d. Received: 'ba'",
            lambda: patterns.find_parameter("ba", 4, 4, 0, density=0.5),
        ),
        (
            ValueError,
            "find_parameter: watts_strogatz must be square, with 1 or more blocks on a side. "
            "Received: in_blocks=4, out_blocks=5",
            lambda: patterns.find_parameter("watts_strogatz", 4, 5, 0, density=0.5),
        ),
        (
            ValueError,
            "find_parameter: either density, or num_weights and block_size are needed. "
            "Received: density=0.5, num_weights=9, block_size=8",
            lambda: patterns.find_parameter(
                "random", 4, 5, 0, density=0.5, num_weights=9, block_size=8
            ),
        ),
        (
            ValueError,
            "find_parameter: either density, or num_weights and block_size are needed. "
            "Received: density=None, num_weights=9, block_size=None",
            lambda: patterns.find_parameter("random", 4, 5, 0, num_weights=9),
        ),
        (
            ValueError,
            "find_parameter: num_weights must be 1 to 1280. Received: 1281",
            lambda: patterns.find_parameter("random", 4, 5, 0, num_weights=1281, block_size=8),
        ),
        (
            ValueError,
            "describe: block_size must be 1 or more. Received: 0",
            lambda: patterns.describe(np.eye(2), 0),
        ),
        (
            ValueError,
            "describe: the mask must have two dimensions, neither of them 0. Received: shape (3,)",
            lambda: patterns.describe(np.ones(3), 8),
        ),
        (
            ValueError,
            "to_text: the mask must have two dimensions, neither of them 0. Received: shape (0, 2)",
            lambda: patterns.to_text(np.ones((0, 2))),
        ),
        (
            TypeError,
            "draw: the mask must be numeric. Received: dtype <U1",
            lambda: patterns.draw([["x"]]),
        ),
        (
            ValueError,
            "to_text: width must be 1 or more. Received: 0",
            lambda: patterns.to_text(np.eye(2), 0),
        ),
        (
            ValueError,
            "average_path_length: the mask must be square. Received: shape (2, 3)",
            lambda: patterns.average_path_length(np.ones((2, 3))),
        ),
        (
            ValueError,
            "average_path_length: num_sources must be 1 or more. Received: 0",
            lambda: patterns.average_path_length(np.eye(2), 0),
        ),
        (
            ValueError,
            "num_steps_to_reach_all: the mask must be square. Received: shape (2, 3)",
            lambda: patterns.num_steps_to_reach_all(np.ones((2, 3))),
        ),
        (
            ValueError,
            "mixing: one or more masks are needed, each with as many rows as the one before "
            "has columns. Received: shapes [(2, 3), (2, 3)]",
            lambda: patterns.mixing([np.ones((2, 3))] * 2),
        ),
        (
            ValueError,
            "mixing: one or more masks are needed, each with as many rows as the one before "
            "has columns. Received: shapes []",
            lambda: patterns.mixing([]),
        ),
    ],
)
def test_errors(error, message, call):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
