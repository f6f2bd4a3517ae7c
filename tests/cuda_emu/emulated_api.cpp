// The emulation's controls as C functions, for tests/emulated_build.py.
#include <cuda_runtime.h>

extern "C" [[gnu::visibility("default")]] void emulated_set_order(int64_t order) { cuda_emu::order = order; }
