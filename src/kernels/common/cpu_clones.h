// Compiling a CPU loop once for each level of the instruction set, in vector instructions.
#ifndef BLOCKSPARSE_KERNELS_COMMON_CPU_CLONES_H_
#define BLOCKSPARSE_KERNELS_COMMON_CPU_CLONES_H_

// Before a function that is no template: one compilation for each level of x86-64, chosen when the
// library loads. The address sanitizer is not ready that early, so it gets the plain one.
//
// Two of GCC's passes make branches of minima and maxima with a constant, so that what follows from
// the constant is computed beforehand; that ends vectors.
#if defined(__GNUC__) && !defined(__clang__)
#define BLOCKSPARSE_KEEP_VECTORS \
  __attribute__((optimize("no-tree-pre", "no-thread-jumps", "no-math-errno")))
#else
#define BLOCKSPARSE_KEEP_VECTORS
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define BLOCKSPARSE_FOR_EACH_CPU \
  BLOCKSPARSE_KEEP_VECTORS       \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define BLOCKSPARSE_FOR_EACH_CPU BLOCKSPARSE_KEEP_VECTORS
#endif
// Before what such a function calls, so that it is compiled for the instruction set of its caller.
#define BLOCKSPARSE_INLINE inline __attribute__((always_inline))

// Before a loop whose iterations are independent of each other: compilers compare only so many
// pointers at run time, and __restrict__ does not survive inlining.
#if defined(__clang__)
#define BLOCKSPARSE_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define BLOCKSPARSE_INDEPENDENT _Pragma("GCC ivdep")
#endif

#endif  // BLOCKSPARSE_KERNELS_COMMON_CPU_CLONES_H_
