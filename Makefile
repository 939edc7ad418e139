# Lockstep: `make` leaves build/lockstep and build/lockstep-worker. `make help` lists the targets.
VERSION := 0.1.0
comma := ,
CC ?= gcc
CLANG ?= clang
MPICC ?= mpicc
PREFIX ?= /usr/local
BUILD ?= build
# The instruction set of the CPU kernels: native, or PORTABLE for a build that has to travel.
ARCH ?= native
X86 := $(filter x86_64-%,$(shell $(CC) -dumpmachine))
PORTABLE := $(if $(X86),x86-64-v3,armv8.2-a)
# gcc 12 for Arm lets variables that live at once share a place on the stack: test_safetensors finds a name overwritten.
MACHINE_FLAGS := $(if $(X86),-mprefer-vector-width=512,$(if $(findstring clang,$(CC)),,-fstack-reuse=none))
# auto: with CUDA where nvcc is; 0: without; PATH: with the toolkit there.
CUDA ?= auto
CUDA_HOME := $(if $(filter auto,$(CUDA)),$(patsubst %/bin/nvcc,%,$(firstword $(wildcard /usr/local/cuda/bin/nvcc) $(shell command -v nvcc))),$(filter-out 0,$(CUDA)))

OPTIMISE ?= -O3
SANITIZE ?=
WARNINGS := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla \
	$(if $(findstring clang,$(CC)),-Wno-pass-failed,-Wno-format-truncation)
PACKAGES := libzmq libprotobuf-c sqlite3 yaml-0.1 jansson libxxhash zlib libzstd libpcre2-8 libutf8proc
OPENBLAS := $(firstword $(wildcard /usr/lib/*/openblas-openmp))

CPPFLAGS := -I. -I$(BUILD)/generated -DLS_VERSION='"$(VERSION)"' $(shell pkg-config --cflags $(PACKAGES)) \
	$(if $(OPENBLAS),-I$(subst /usr/lib,/usr/include,$(OPENBLAS)))
CFLAGS := -std=gnu11 -g $(OPTIMISE) $(WARNINGS) $(SANITIZE) -march=$(ARCH) $(MACHINE_FLAGS) -fopenmp -fno-math-errno -fno-trapping-math -pthread
LDFLAGS := $(SANITIZE) -fopenmp -pthread
LDLIBS := $(shell pkg-config --libs $(PACKAGES)) -ldnnl \
	$(if $(OPENBLAS),-L$(OPENBLAS) -Wl$(comma)-rpath$(comma)$(OPENBLAS)) -l:libopenblas.so.0 -lm

# The CUDA runtime is linked statically; NCCL, cuBLASLt, cuDNN and NVML are opened when a GPU was found. One program serves both.
ifneq ($(CUDA_HOME),)
NVCC := $(if $(shell command -v ccache),ccache )$(CUDA_HOME)/bin/nvcc
NVCCFLAGS := -O3 -std=c++20 -I. -Werror all-warnings -ccbin g++ -Xcompiler -fno-exceptions,-fno-threadsafe-statics,-Wall,-Wextra \
	-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_90,code=compute_90
CPPFLAGS += -DLS_CUDA -isystem $(CUDA_HOME)/include
# cuDNN comes apart from the toolkit: without its headers attention is our kernels' alone.
CUDNN := $(if $(wildcard $(CUDA_HOME)/include/cudnn_graph.h /usr/include/cudnn_graph.h /usr/include/*/cudnn_graph.h),1)
CPPFLAGS += $(if $(CUDNN),-DLS_CUDNN)
CUDA_OBJECTS := $(patsubst %.cu,$(BUILD)/%.cu.o,$(wildcard worker/device/cuda/*.cu))
CUDA_LIBRARY := $(BUILD)/libcuda-kernels.a
CUDA_LDLIBS := -L$(CUDA_HOME)/lib64 -lcudart_static -ldl -lrt
LEFT_OUT := worker/device/without_cuda.c worker/comm/without_nccl.c \
	$(if $(CUDNN),worker/device/cuda/without_cudnn.c,$(wildcard worker/device/cuda/sdpa*.c))
else
LEFT_OUT := $(wildcard worker/device/cuda/*.c) worker/comm/nccl.c worker/comm/nccl_team.c
endif

# Everything but the two main programs and what needs MPI is one archive; a program takes from it what it calls.
MAINS := coordinator/main.c worker/main.c
MPI_SOURCES := worker/comm/mpi.c worker/comm/peers.c worker/examine.c
SOURCES := $(filter-out $(MAINS) $(MPI_SOURCES) $(LEFT_OUT),$(wildcard common/*.c coordinator/*.c worker/*.c worker/*/*.c worker/device/*/*.c))
OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o) $(BUILD)/generated/common/wire.pb-c.o
LIBRARY := $(BUILD)/liblockstep.a
UNIT_TESTS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/test_*.c))
SIM_TESTS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/sim/test_*.c))
MPI_TESTS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/mpi_*.c))
FUZZERS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/fuzz/fuzz_*.c))

.PHONY: all tests fuzzers debug asan tsan bundle install format lint clean help
.DELETE_ON_ERROR:
# Objects of tests and benches stay. (All of them .SECONDARY would keep a library that lacks a new object.)
.PRECIOUS: $(BUILD)/%.o

all: $(BUILD)/lockstep $(BUILD)/lockstep-worker
ifeq ($(CUDA_HOME),)
	@echo "without CUDA: $(if $(filter 0,$(CUDA)),CUDA=0 was asked for,nvcc was not found (make CUDA=PATH names a toolkit))"
endif

$(BUILD)/lockstep: $(BUILD)/coordinator/main.o $(LIBRARY) $(CUDA_LIBRARY)
	$(CC) $(LDFLAGS) -o $@ $^ $(CUDA_LDLIBS) $(LDLIBS)

$(BUILD)/lockstep-worker: $(BUILD)/worker/main.o $(MPI_SOURCES:%.c=$(BUILD)/%.o) $(LIBRARY) $(CUDA_LIBRARY)
	OMPI_CC=$(CC) $(MPICC) $(LDFLAGS) -o $@ $^ $(CUDA_LDLIBS) $(LDLIBS)

$(BUILD)/libcuda-kernels.a: $(CUDA_OBJECTS)
	@rm -f $@
	$(AR) rcs $@ $^
$(BUILD)/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) -Xptxas -v -MMD -MP -c -o $@ $< >$(@:.o=.log) 2>&1 || { cat $(@:.o=.log) >&2; exit 1; }

$(LIBRARY): $(OBJECTS) $(BUILD)/cuda-home
	@rm -f $@
	$(AR) rcs $@ $(OBJECTS)
# Changes when the build goes from one CUDA to another, or to none.
$(BUILD)/cuda-home: FORCE
	@mkdir -p $(@D)
	@echo "$(CUDA_HOME)" | cmp -s - $@ || echo "$(CUDA_HOME)" >$@
FORCE:
$(BUILD)/coordinator/doctor_host.o: $(BUILD)/cuda-home

$(BUILD)/generated/common/wire.pb-c.c $(BUILD)/generated/common/wire.pb-c.h &: common/wire.proto
	@mkdir -p $(BUILD)/generated
	protoc-c --c_out=$(BUILD)/generated common/wire.proto

$(BUILD)/generated/%.o: $(BUILD)/generated/%.c
	$(CC) $(CPPFLAGS) $(filter-out -Werror -W%,$(CFLAGS)) -MMD -MP -c -o $@ $<

$(MPI_SOURCES:%.c=$(BUILD)/%.o) $(BUILD)/worker/main.o $(BUILD)/tests/unit/mpi_%.o $(BUILD)/tests/emulated/mpi_%.o $(BUILD)/scripts/bench/collectives.o: compile = OMPI_CC=$(CC) $(MPICC)
compile = $(CC)
$(BUILD)/%.o: %.c | $(BUILD)/generated/common/wire.pb-c.h
	@mkdir -p $(@D)
	$(compile) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# Programs of the integration tests.
TEST_PROGRAMS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/integration/hostile.c tests/integration/say.c))

tests: $(UNIT_TESTS) $(SIM_TESTS) $(MPI_TESTS) $(TEST_PROGRAMS)

$(BUILD)/tests/integration/%: $(BUILD)/tests/integration/%.o $(LIBRARY)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/tests/unit/test_%: $(BUILD)/tests/unit/test_%.o $(LIBRARY) $(CUDA_LIBRARY)
	$(CC) $(LDFLAGS) -o $@ $^ -lcmocka $(CUDA_LDLIBS) $(LDLIBS)
# A driver that cuDNN finds where there is none.
$(BUILD)/tests/unit/test_sdpa_graph: | $(BUILD)/tests/standin/libcuda.so.1
$(BUILD)/tests/standin/libcuda.so.1: tests/standin/libcuda.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -fPIC -shared -Wl,-soname,$(@F) -o $@ $<
$(BUILD)/tests/sim/test_%: $(BUILD)/tests/sim/test_%.o $(LIBRARY) $(CUDA_LIBRARY)
	$(CC) $(LDFLAGS) -o $@ $^ -lcmocka $(CUDA_LDLIBS) $(LDLIBS)
$(BUILD)/tests/unit/mpi_%: $(BUILD)/tests/unit/mpi_%.o $(MPI_SOURCES:%.c=$(BUILD)/%.o) $(LIBRARY) $(CUDA_LIBRARY)
	OMPI_CC=$(CC) $(MPICC) $(LDFLAGS) -o $@ $^ -lcmocka $(CUDA_LDLIBS) $(LDLIBS)

CUDA_KERNELS := $(wildcard worker/device/cuda/*.cu)
EMULATED := $(CUDA_KERNELS:%.cu=$(BUILD)/emulator/%.o) $(BUILD)/emulator/tests/emulator/scheduler.o

# The whole CUDA worker on CPUs: the same objects, with emulated kernels and a stand-in for the CUDA runtime, and libraries
# that are opened from $(BUILD)/emulator/lib (tests/standin/standin.h).
ifneq ($(CUDA_HOME),)
STANDIN := $(BUILD)/emulator/tests/standin/cudart.o
STANDIN_LIBRARIES := $(addprefix $(BUILD)/emulator/lib/,libcublasLt.so.13 libnvidia-ml.so.1 $(if $(CUDNN),libcudnn.so.9) $(if $(wildcard tests/standin/nccl*.c),libnccl.so.2))
STANDIN_FLAGS := $(filter-out -march=% -mprefer-vector-width=%,$(CFLAGS)) -march=$(ARCH) -fPIC
$(BUILD)/emulator/tests/standin/%.o: tests/standin/%.c
	@mkdir -p $(@D)
	OMPI_CC=$(CC) $(if $(findstring nccl,$*),$(MPICC),$(CC)) $(CPPFLAGS) $(STANDIN_FLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/emulator/lib/libcublasLt.so.13: $(BUILD)/emulator/tests/standin/cublaslt.o
$(BUILD)/emulator/lib/libcudnn.so.9: $(BUILD)/emulator/tests/standin/cudnn.o $(BUILD)/emulator/tests/standin/cudnn_graph.o
$(BUILD)/emulator/lib/libnvidia-ml.so.1: $(BUILD)/emulator/tests/standin/nvml.o
$(BUILD)/emulator/lib/libnccl.so.2: $(patsubst %.c,$(BUILD)/emulator/%.o,$(wildcard tests/standin/nccl*.c))
$(STANDIN_LIBRARIES):
	@mkdir -p $(@D)
	$(CC) $(SANITIZE) -shared -o $@ $^ -lm
$(BUILD)/emulator/lockstep: $(BUILD)/coordinator/main.o $(LIBRARY) $(EMULATED) $(STANDIN) | $(STANDIN_LIBRARIES)
	$(CC) $(LDFLAGS) -rdynamic -o $@ $^ $(LDLIBS)
$(BUILD)/emulator/lockstep-worker: $(BUILD)/worker/main.o $(MPI_SOURCES:%.c=$(BUILD)/%.o) $(LIBRARY) $(EMULATED) $(STANDIN) | $(STANDIN_LIBRARIES)
	OMPI_CC=$(CC) $(MPICC) $(LDFLAGS) -rdynamic -o $@ $^ $(LDLIBS)
EMULATED_TESTS := $(patsubst tests/emulated/%.c,$(BUILD)/emulator/tests/emulated/%,$(wildcard tests/emulated/*.c))
$(EMULATED_TESTS): $(BUILD)/emulator/%: $(BUILD)/%.o $(MPI_SOURCES:%.c=$(BUILD)/%.o) $(LIBRARY) $(EMULATED) $(STANDIN) | $(STANDIN_LIBRARIES)
	@mkdir -p $(@D)
	OMPI_CC=$(CC) $(MPICC) $(LDFLAGS) -rdynamic -o $@ $^ -lcmocka $(LDLIBS)
$(BUILD)/emulator/scripts/bench/%: $(BUILD)/scripts/bench/%.o $(LIBRARY) $(EMULATED) $(STANDIN) | $(STANDIN_LIBRARIES)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -rdynamic -o $@ $^ $(LDLIBS)
$(BUILD)/emulator/tests/unit/%: $(BUILD)/tests/unit/%.o $(MPI_SOURCES:%.c=$(BUILD)/%.o) $(LIBRARY) $(EMULATED) $(STANDIN) | $(STANDIN_LIBRARIES)
	@mkdir -p $(@D)
	OMPI_CC=$(CC) $(MPICC) $(LDFLAGS) -rdynamic -o $@ $^ -lcmocka $(LDLIBS)
endif
.PHONY: emulated
emulated: $(if $(CUDA_HOME),$(BUILD)/emulator/lockstep $(BUILD)/emulator/lockstep-worker $(EMULATED_TESTS))

# The CUDA kernels on CPUs: the same .cu files compiled by a C++ compiler over tests/emulator. The scheduler is told of the
# sanitizers and built without them. Sums of products are contracted, as nvcc does, where
# this CPU can.
EMULATOR_FLAGS := $(if $(shell grep -ow -m1 fma /proc/cpuinfo),-mfma) -ffp-contract=fast -I. -isystem $(CUDA_HOME)/include -DLS_EMULATE -g $(OPTIMISE) -Wall -Wextra -Werror -Wshadow \
	-Wno-unknown-pragmas -fno-strict-aliasing -fno-exceptions -fno-rtti -fno-threadsafe-statics
EMULATOR_TESTS := $(patsubst tests/gpu/%.cu,$(BUILD)/emulator/tests/gpu/%,$(wildcard tests/gpu/test_*.cu))

$(BUILD)/emulator/%.o: %.cu
	@mkdir -p $(@D)
	$(CXX) -x c++ -std=c++20 $(EMULATOR_FLAGS) $(SANITIZE) -MMD -MP -c -o $@ $<
$(BUILD)/emulator/tests/emulator/scheduler.o: tests/emulator/scheduler.c
	@mkdir -p $(@D)
	$(CC) -I. -std=gnu11 -g -O2 $(WARNINGS) $(if $(findstring thread,$(SANITIZE)),-DLS_EMULATOR_TSAN,-fopenmp) \
		$(if $(findstring address,$(SANITIZE)),-DLS_EMULATOR_ASAN) -MMD -MP -c -o $@ $<
$(EMULATOR_TESTS): $(BUILD)/emulator/%: $(BUILD)/emulator/%.o $(EMULATED)
	$(CXX) $(SANITIZE) -fopenmp -pthread -o $@ $^ -lm
$(BUILD)/emulator/tests/emulator/faults: $(BUILD)/emulator/%: $(BUILD)/emulator/%.o $(BUILD)/emulator/tests/emulator/scheduler.o
	$(CXX) $(SANITIZE) -fopenmp -pthread -o $@ $^ -lm
.PHONY: cuda-home emulator emulator-asan emulator-tsan
cuda-home: # where the toolkit is, or nothing
	@echo $(CUDA_HOME)
emulator: $(EMULATOR_TESTS) $(BUILD)/emulator/tests/emulator/faults
emulator-asan:
	$(MAKE) BUILD=$(BUILD)/asan OPTIMISE=-O1 SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer' emulator
emulator-tsan:
	$(MAKE) BUILD=$(BUILD)/tsan OPTIMISE=-O1 SANITIZE='-fsanitize=thread' emulator

# What bin/gpu-check of a bundle runs on a GPU: the tests of the kernels by nvcc, the references, the kernels' rates.
ifneq ($(CUDA_HOME),)
GPU_TESTS := $(patsubst tests/gpu/%.cu,$(BUILD)/tests/gpu/%,$(wildcard tests/gpu/test_*.cu))
GPU_PROGRAMS := $(GPU_TESTS) $(BUILD)/tests/unit/test_model_reference $(BUILD)/scripts/bench/gpu_kernels
$(GPU_TESTS): $(BUILD)/%: $(BUILD)/%.cu.o $(CUDA_LIBRARY)
	$(CC) -o $@ $^ $(CUDA_LDLIBS) -lpthread -lm
endif
.PHONY: gpu-programs emulated-gpu-programs
gpu-programs: $(GPU_PROGRAMS)
emulated-gpu-programs: emulated emulator $(BUILD)/emulator/tests/unit/test_model_reference $(BUILD)/emulator/scripts/bench/gpu_kernels

# Benchmarks: `make build/scripts/bench/kernels` and run it on a quiet host.
$(BUILD)/scripts/bench/%: $(BUILD)/scripts/bench/%.o $(LIBRARY) $(CUDA_LIBRARY)
	$(CC) $(LDFLAGS) -o $@ $^ $(CUDA_LDLIBS) $(LDLIBS)
$(BUILD)/scripts/bench/collectives: $(BUILD)/scripts/bench/collectives.o $(MPI_SOURCES:%.c=$(BUILD)/%.o) $(LIBRARY) $(CUDA_LIBRARY)
	OMPI_CC=$(CC) $(MPICC) $(LDFLAGS) -o $@ $^ $(CUDA_LDLIBS) $(LDLIBS)

# Fuzzers are whole builds of their own: clang, coverage and sanitizers in every file they call (scripts/fuzz).
fuzzers: $(FUZZERS)
$(BUILD)/tests/fuzz/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(LIBRARY) $(CUDA_LIBRARY)
	$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(CUDA_LDLIBS) $(LDLIBS)

debug:
	$(MAKE) BUILD=$(BUILD)/debug OPTIMISE='-O0 -DLS_DEBUG' all tests
asan:
	$(MAKE) BUILD=$(BUILD)/asan OPTIMISE='-O1 -DLS_DEBUG' SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer' all tests
tsan:
	$(MAKE) BUILD=$(BUILD)/tsan CC=clang OPTIMISE='-O1 -DLS_DEBUG' SANITIZE='-fsanitize=thread' all tests

# A relocatable folder with everything a run needs but CUDA's libraries, packed (docs/gpu.md).
BUNDLE_ARCH ?= $(PORTABLE)
bundle:
	$(MAKE) BUILD=$(BUILD)/bundle ARCH=$(BUNDLE_ARCH) all gpu-programs
	scripts/bundle/make $(BUILD)/bundle $(BUILD)/lockstep-bundle
	tar -C $(BUILD) -cf - lockstep-bundle | xz -6 -T0 >$(BUILD)/lockstep-bundle.tar.xz
	@echo "$(BUILD)/lockstep-bundle.tar.xz: $$(($$(stat -c %s $(BUILD)/lockstep-bundle.tar.xz) / 1000000)) MB"
	@[ $$(stat -c %s $(BUILD)/lockstep-bundle.tar.xz) -le 40000000 ] || { echo "bundle: more than the 40 MB it may have" >&2; exit 1; }

install: all
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(BUILD)/lockstep $(BUILD)/lockstep-worker $(DESTDIR)$(PREFIX)/bin
	install -D -m 644 scripts/completion/lockstep.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/lockstep

format:
	git ls-files -z '*.c' '*.h' '*.cu' | xargs -0 clang-format -i
lint:
	scripts/lint
clean:
	rm -rf $(BUILD)
help:
	@echo "make [all] | debug | asan | tsan | tests | bundle | install | format | lint | clean"
	@echo "     CC=$(CC) MPICC=$(MPICC) PREFIX=$(PREFIX) ARCH=$(ARCH) BUILD=$(BUILD)"

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
