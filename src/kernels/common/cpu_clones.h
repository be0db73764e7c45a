// Compiling a CPU loop once for each level of the instruction set.
#ifndef BLOCKSPARSE_KERNELS_COMMON_CPU_CLONES_H_
#define BLOCKSPARSE_KERNELS_COMMON_CPU_CLONES_H_

// Before a function that is no template: one compilation for each level of x86-64, chosen when the
// library loads. The address sanitizer is not ready that early, so it gets the plain one.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define BLOCKSPARSE_FOR_EACH_CPU \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define BLOCKSPARSE_FOR_EACH_CPU
#endif
// Before what such a function calls, so that it is compiled for the instruction set of its caller.
#define BLOCKSPARSE_INLINE inline __attribute__((always_inline))

#endif  // BLOCKSPARSE_KERNELS_COMMON_CPU_CLONES_H_
