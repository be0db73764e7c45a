# Two commands need nothing but this file, python3 and g++:   make demo   make test
# Settings (make build CUDA_ARCHS="80 90a" ...), each with its default:
PYTHON3      ?= python3
VENV         ?= .venv
# GPU machines get TensorFlow's GPU wheel; the library that is built works under both.
TENSORFLOW   ?= $(if $(shell command -v nvidia-smi 2>/dev/null),tensorflow[and-cuda],tensorflow-cpu)==2.21.*
# Python that has TensorFlow. Set it to build and test with an environment of your own.
PYTHON       ?= $(VENV)/bin/python
BUILD        ?= build
CXX          ?= g++
NVCC         ?= $(firstword $(wildcard $(addsuffix /bin/nvcc,$(CUDA_HOME))) $(shell command -v nvcc 2>/dev/null))
CUDA_ARCHS   ?= 80 90a
# Newer GPUs than CUDA_ARCHS names run this one's PTX.
CUDA_PTX     ?= 90
PYTEST_ARGS  ?=

# For a PYTHON of your own; the environment that make creates has the source tree on its path.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

LIBRARY      := blocksparse/_blocksparse_ops.so
KERNELS_LIB  := $(BUILD)/libblocksparse_kernels.so
READY        := $(if $(filter $(VENV)/%,$(PYTHON)),$(VENV)/.ready)

.DEFAULT_GOAL := help
.PHONY: help demo example test test-gpu sanitize build kernels lint format bench room wheel clean
.DELETE_ON_ERROR:

help:  ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

# ---- environment ---------------------------------------------------------------------------------------------------

$(VENV)/.ready: pyproject.toml tools/make_venv.sh
	@PYTHON3="$(PYTHON3)" CXX="$(CXX)" bash tools/make_venv.sh "$(VENV)" "$(TENSORFLOW)"
	@touch $@

# ---- the library ---------------------------------------------------------------------------------------------------

KERNEL_CC := $(wildcard src/kernels/*.cc src/kernels/common/*.cc)
KERNEL_CU := $(if $(NVCC),$(wildcard src/kernels/*.cu))
OP_CC     := $(wildcard src/ops/*.cc)
KERNEL_O  := $(patsubst src/%,$(BUILD)/%.o,$(KERNEL_CC) $(KERNEL_CU))
OP_O      := $(patsubst src/%,$(BUILD)/%.o,$(OP_CC))

WARNINGS  := -Wall -Wextra
SANITIZE  ?=
# -DBLOCKSPARSE_RACECHECK: GPU kernels that compute-sanitizer's racecheck can follow.
NVCC_DEFINES ?=
# NDEBUG: TensorFlow's debug checks need symbols that not every version exports; in device code an assert makes ptxas
# serialise wgmma.
CXXFLAGS  := -std=c++17 -O3 -DNDEBUG -fPIC -fvisibility=hidden -MMD -I. $(WARNINGS) $(SANITIZE) \
             $(if $(NVCC),-DBLOCKSPARSE_WITH_CUDA)
NVCCFLAGS := -std=c++17 -O3 -DNDEBUG $(NVCC_DEFINES) -I. -Xcompiler -fPIC,-fvisibility=hidden,-Wall -Xptxas=-v \
             $(foreach arch,$(CUDA_ARCHS),-gencode arch=compute_$(arch),code=sm_$(arch)) \
             -gencode arch=compute_$(CUDA_PTX),code=compute_$(CUDA_PTX)
# TensorFlow logs when it is imported, whatever it is told; that counts only if the command fails.
QUIETLY = 2> $(BUILD)/stderr || { cat $(BUILD)/stderr >&2; exit 1; }

$(BUILD)/tensorflow.mk: $(READY) tools/tensorflow_flags.py
	@mkdir -p $(@D)
	@$(PYTHON) tools/tensorflow_flags.py > $@ $(QUIETLY)
ifneq ($(filter-out help clean kernels lint format room wheel demo example test test-gpu sanitize bench,$(or $(MAKECMDGOALS),help)),)
-include $(BUILD)/tensorflow.mk
endif

$(BUILD)/ops/%.cc.o: src/ops/%.cc $(BUILD)/tensorflow.mk $(BUILD)/settings
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) $(TF_CFLAGS) -c $< -o $@
$(BUILD)/kernels/%.cc.o: src/kernels/%.cc $(BUILD)/settings
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -c $< -o $@
$(BUILD)/kernels/%.cu.o: src/kernels/%.cu $(BUILD)/settings
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) -MD -MF $(@:.o=.d) -c $< -o $@ > $@.log 2>&1 || { cat $@.log; exit 1; }
	@$(PYTHON3) tools/check_ptxas.py $@.log

# Rewritten, and so newer than the objects, only when a setting that reaches the compilers has changed.
SETTINGS := $(CXX) $(CXXFLAGS) $(NVCC) $(NVCCFLAGS)
$(BUILD)/settings: FORCE
	@mkdir -p $(@D)
	@echo '$(SETTINGS)' | cmp -s - $@ || echo '$(SETTINGS)' > $@
FORCE:
.PHONY: FORCE

# The static CUDA runtime by path, hidden, and before TensorFlow, whose own library exports stubs of the same names.
define LINK
$(if $(NVCC),cudart=$$(bash tools/find_cudart.sh "$(NVCC)") && )\
$(CXX) -shared $(SANITIZE) -o $@ $(filter %.o,$^) \
  $(if $(NVCC),"$$cudart" -Wl$(comma)--exclude-libs$(comma)libcudart_static.a) $(1) -lrt -lpthread -ldl -Wl,-z,defs
endef
comma := ,

$(LIBRARY): $(OP_O) $(KERNEL_O)
	$(call LINK,$(TF_LFLAGS))
	@bash tools/check_symbols.sh $@
	@$(PYTHON) tools/write_build_info.py "$(NVCC)" "$(CUDA_ARCHS)" $(CUDA_PTX) \
	  > blocksparse/_build_info.py $(QUIETLY)

$(KERNELS_LIB): $(KERNEL_O)
	$(call LINK)

-include $(wildcard $(BUILD)/*/*.d $(BUILD)/*/*/*.d)

# ---- targets -------------------------------------------------------------------------------------------------------
# The targets below call make again for the library, so that TensorFlow's flags are read after the environment exists.

JOBS ?= $(shell nproc 2>/dev/null || echo 2)
MAKE_LIBRARY = @$(MAKE) --no-print-directory -j$(JOBS) build

build: $(LIBRARY)  ## build the shared library; prints each kernel file's registers and shared memory
	@$(if $(NVCC),,echo "nvcc was not found on PATH or in CUDA_HOME: built the CPU kernels only.")
	@$(if $(NVCC),cat $(BUILD)/kernels/*.cu.o.log | $(PYTHON3) tools/check_ptxas.py --summary -)

kernels: $(KERNELS_LIB)  ## build the kernels alone, without TensorFlow, for ctypes

demo: $(READY)  ## set up, build, and train a small sparse language model for two minutes
	$(MAKE_LIBRARY)
	@rm -rf $(DEMO)
	$(PYTHON) examples/lstm/train.py --out $(DEMO) $(DEMO_FLAGS)
DEMO       := runs/demo
DEMO_FLAGS := --hidden 512 --density 0.1 --feature-axis 0 --batch 32 --window 32 --steps 1000 --rate 6e-3 --warmup 50 \
              --validate-every 250 --validation-bytes 131072 --sample 400

example: $(READY)  ## set up, build, and run the smallest example: one product and its gradients
	$(MAKE_LIBRARY)
	$(PYTHON) examples/simple.py

test: $(READY)  ## set up, build, and run all tests; GPU tests run where there is a GPU
	$(MAKE_LIBRARY)
	$(PYTHON) -m pytest -n $(JOBS) test $(PYTEST_ARGS)

test-gpu: $(READY)  ## run the tests that need a GPU, and fail without one
	$(MAKE_LIBRARY)
	BLOCKSPARSE_REQUIRE_GPU=1 $(PYTHON) -m pytest -m gpu test $(PYTEST_ARGS)

sanitize: $(READY)  ## look for invalid memory accesses and races: AddressSanitizer, and compute-sanitizer on a GPU
	PYTHON="$(PYTHON)" bash tools/sanitize.sh "$(BUILD)-asan"

lint: $(READY)  ## check style: ruff and clang-format
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)

format: $(READY)  ## rewrite files in the project's style
	$(VENV)/bin/ruff format --quiet . && $(VENV)/bin/ruff check --fix .
	$(VENV)/bin/clang-format -i $(CXX_FILES)
CXX_FILES = $(shell git ls-files --cached --others --exclude-standard 'src/*.h' 'src/*.cc' 'src/*.cu' 'src/*.cuh' \
              'test/*.cc')

bench: $(READY)  ## time a room against its dense rivals: make bench OP=matmul BENCH_ARGS=...
	$(MAKE_LIBRARY)
	$(PYTHON) bench/bench_$(or $(OP),matmul).py $(BENCH_ARGS)

room:  ## list the files of a room: make room OP=matmul
	@wc -l $$(git ls-files --cached --others --exclude-standard | grep -E '(^|/)(test_|bench_)?$(or $(OP),matmul)[_.][^/]*$$')

wheel: $(READY)  ## build dist/blocksparse-*-py3-none-*.whl
	$(MAKE_LIBRARY)
	$(PYTHON) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:  ## delete what was built; the environment stays
	rm -rf $(BUILD) $(BUILD)-asan dist *.egg-info blocksparse/_blocksparse_ops.so blocksparse/_build_info.py
