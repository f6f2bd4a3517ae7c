// The emulation's controls as C functions, for tests/emulated_build.py.
#include <cuda_runtime.h>

extern "C" void emulated_set_order(int64_t order) { cuda_emu::order = order; }
extern "C" const char* emulated_message() { return cuda_emu::message.c_str(); }
