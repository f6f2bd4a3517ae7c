// What a GPU can do, in under a minute: prints one JSON object.
//
//   nvcc -std=c++17 -O3 -arch=native benchmarks/gpu_probe.cu -o probe && ./probe
//
// Barriers of a block, of a thread-block cluster and of the grid; an exchange through distributed shared memory; launches, and
// nodes of a graph; the bandwidth of global memory and of weights that many blocks read from the second-level cache; float32
// arithmetic. Clusters need compute capability 9.0: elsewhere their entries are null. `pytest tests/gpu` compiles it.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace cg = cooperative_groups;

namespace {

constexpr int kRounds = 2000;                 // of what takes cycles
constexpr int kRepetitions = 20;              // of what takes microseconds: their median counts
constexpr size_t kClusterShared = 200 << 10;  // what a block of a memory network's cluster would hold
constexpr int64_t kCopyBytes = int64_t{1} << 30;
constexpr int kThreads = 256;

void check(cudaError_t error, const char* what, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "benchmarks/gpu_probe.cu:%d: %s: %s\n", line, what, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK(call) check((call), #call, __LINE__)

// ---- kernels ---------------------------------------------------------------------------------------------------------------

__global__ void block_barrier_kernel(long long* cycles) {
  const long long begin = clock64();
  for (int i = 0; i < kRounds; ++i) __syncthreads();
  if (threadIdx.x == 0 && blockIdx.x == 0) *cycles = clock64() - begin;
}

// cycles[0] of a barrier; [1] of a dependent load from the next block's shared memory; [2] of an exchange as a kernel makes it:
// write, barrier, read from all.
__global__ void cluster_kernel(long long* cycles) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ int shared[];
  const auto cluster = cg::this_cluster();
  const int n = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const bool reports = thread == 0 && blockIdx.x == 0;
  shared[thread] = (thread + 32) % n;
  shared[thread + n] = 0;
  cluster.sync();

  long long begin = clock64();
  for (int i = 0; i < kRounds; ++i) cluster.sync();
  if (reports) cycles[0] = clock64() - begin;

  const int* next = cluster.map_shared_rank(shared, (cluster.block_rank() + 1) % cluster.num_blocks());
  int at = thread;
  begin = clock64();
  for (int i = 0; i < kRounds; ++i) at = next[at];
  if (reports) cycles[1] = clock64() - begin + (at == -1);
  cluster.sync();

  int x = at & 1;
  begin = clock64();
  for (int i = 0; i < kRounds; ++i) {
    int* own = shared + (i & 1) * n;
    own[thread] = x;
    cluster.sync();
    x = 0;
    for (unsigned block = 0; block < cluster.num_blocks(); ++block) x += cluster.map_shared_rank(own, block)[thread];
  }
  if (reports) cycles[2] = clock64() - begin + (x == -1);
  cluster.sync();  // no block leaves while others read its shared memory
#endif
}

__global__ void grid_barrier_kernel(int rounds) {
  for (int i = 0; i < rounds; ++i) cg::this_grid().sync();
}

__global__ void small_kernel(float* x) {
  if (threadIdx.x == 0 && blockIdx.x == 0) *x += 1;
}

__global__ void copy_kernel(const float4* from, float4* to, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) to[i] = from[i];
}

// Every group of `blocks` reads all of `data`, as a matrix-vector product a row does with weights in the second-level cache.
__global__ void read_by_groups_kernel(const float4* data, int64_t count, int blocks, int rounds, float* out) {
  float sum = 0;
  const int64_t first = static_cast<int64_t>(blockIdx.x % blocks) * blockDim.x + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(blocks) * blockDim.x;
  for (int r = 0; r < rounds; ++r) {
    for (int64_t i = first; i < count; i += stride) {
      const float4 v = __ldcg(data + i);
      sum += v.x + v.y + v.z + v.w;
    }
  }
  if (sum == -1.0f) *out = sum;
}

// Eight independent chains of multiplications with additions a thread.
__global__ void multiply_add_kernel(int rounds, float by, float* out) {
  float v[8];
  for (int c = 0; c < 8; ++c) v[c] = static_cast<float>(threadIdx.x + c);
  for (int i = 0; i < rounds; ++i) {
#pragma unroll
    for (int c = 0; c < 8; ++c) v[c] = v[c] * by + 1.0f;
  }
  float sum = 0;
  for (int c = 0; c < 8; ++c) sum += v[c];
  if (sum == -1.0f) *out = sum;
}

// ---- measuring -------------------------------------------------------------------------------------------------------------

template <class F>
double microseconds(const F& work) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < kRepetitions + 3; ++i) {  // three to warm up
    CHECK(cudaEventRecord(begin));
    work();
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) times.push_back(ms * 1e3f);
  }
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

template <class T>
T* device_array(size_t count) {
  T* p = nullptr;
  CHECK(cudaMalloc(&p, count * sizeof(T)));
  CHECK(cudaMemset(p, 0, count * sizeof(T)));
  return p;
}

// "name": value pairs, one a line.
class Json {
 public:
  void number(const std::string& name, double value) {
    char text[64];
    std::snprintf(text, sizeof(text), "%.4g", value);
    add(name, text);
  }
  void text(const std::string& name, const std::string& value) { add(name, "\"" + value + "\""); }
  void null(const std::string& name) { add(name, "null"); }
  void print() const { std::printf("{%s\n}\n", body_.c_str()); }

 private:
  std::string body_;
  void add(const std::string& name, const std::string& value) {
    body_ += (body_.empty() ? "\n  \"" : ",\n  \"") + name + "\": " + value;
  }
};

void describe(const cudaDeviceProp& device, Json& json) {
  json.text("device", device.name);
  json.text("compute_capability", std::to_string(device.major) + "." + std::to_string(device.minor));
  json.number("multiprocessors", device.multiProcessorCount);
  json.number("l2_mib", device.l2CacheSize / 1048576.0);
  json.number("memory_gib", static_cast<double>(device.totalGlobalMem) / 1073741824.0);
  json.number("shared_kib_a_block", static_cast<double>(device.sharedMemPerBlockOptin) / 1024.0);
  int driver = 0, runtime = 0;
  CHECK(cudaDriverGetVersion(&driver));
  CHECK(cudaRuntimeGetVersion(&runtime));
  json.number("driver", driver);
  json.number("runtime", runtime);
}

void barriers(const cudaDeviceProp& device, Json& json) {
  long long* cycles = device_array<long long>(3);
  long long host[3];
  for (const unsigned threads : {128u, 256u, 512u, 1024u}) {
    block_barrier_kernel<<<1, threads>>>(cycles);
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpy(host, cycles, sizeof(host[0]), cudaMemcpyDefault));
    json.number("block_barrier_cycles_" + std::to_string(threads), static_cast<double>(host[0]) / kRounds);
  }
  for (const unsigned blocks : {1u, 2u, 4u, 8u, 16u}) {
    const std::string of = "_cluster_of_" + std::to_string(blocks);
    const char* names[3] = {"barrier_cycles", "remote_load_cycles", "exchange_cycles"};
    int fit = 0;
    if (device.major >= 9) {
      CHECK(cudaFuncSetAttribute(cluster_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
      CHECK(
          cudaFuncSetAttribute(cluster_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kClusterShared)));
      cudaLaunchAttribute attribute{};
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {blocks, 1, 1};
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(blocks), config.blockDim = dim3(kThreads), config.dynamicSmemBytes = kClusterShared;
      config.attrs = &attribute, config.numAttrs = 1;
      CHECK(cudaOccupancyMaxActiveClusters(&fit, cluster_kernel, &config));
      if (fit > 0) {
        CHECK(cudaLaunchKernelEx(&config, cluster_kernel, cycles));
        CHECK(cudaMemcpy(host, cycles, sizeof(host), cudaMemcpyDefault));
      }
    }
    json.number("fit" + of, fit);
    for (int i = 0; i < 3; ++i) {
      if (fit > 0) {
        json.number(names[i] + of, static_cast<double>(host[i]) / kRounds);
      } else {
        json.null(names[i] + of);
      }
    }
  }
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(device.multiProcessorCount)), config.blockDim = dim3(kThreads);
  config.attrs = &cooperative, config.numAttrs = 1;
  constexpr int kBarriers = 500;
  const double none = microseconds([&] { CHECK(cudaLaunchKernelEx(&config, grid_barrier_kernel, 0)); });
  const double all = microseconds([&] { CHECK(cudaLaunchKernelEx(&config, grid_barrier_kernel, kBarriers)); });
  json.number("grid_barrier_us", (all - none) / kBarriers);
  CHECK(cudaFree(cycles));
}

void launches(Json& json) {
  constexpr int kNodes = 500;
  float* x = device_array<float>(1);
  json.number("launch_us", microseconds([&] {
                             for (int i = 0; i < kNodes; ++i) small_kernel<<<128, kThreads>>>(x);
                             CHECK(cudaGetLastError());
                           }) / kNodes);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < kNodes; ++i) small_kernel<<<128, kThreads, 0, stream>>>(x);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  json.number("graph_node_us", microseconds([&] { CHECK(cudaGraphLaunch(executable, 0)); }) / kNodes);
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaStreamDestroy(stream));
  CHECK(cudaFree(x));
}

struct Groups {
  int rows, blocks;  // of a batch; for each of them
};

void rates(const cudaDeviceProp& device, Json& json) {
  const int64_t elements = kCopyBytes / static_cast<int64_t>(sizeof(float4));
  float4 *from = device_array<float4>(elements), *to = device_array<float4>(elements);
  float* out = device_array<float>(1);
  const unsigned blocks = static_cast<unsigned>(device.multiProcessorCount) * 16;
  const double copied = microseconds([&] { copy_kernel<<<blocks, kThreads>>>(from, to, elements); });
  CHECK(cudaGetLastError());
  json.number("copy_gb_s", 2.0 * static_cast<double>(kCopyBytes) / copied / 1e3);

  // Weights of a memory network with 100 and with 256 hidden units, read by so many rows of a batch, each on so many blocks.
  for (const int64_t kib : {453, 2519}) {
    for (const Groups& g : {Groups{16, 1}, Groups{16, 4}, Groups{16, 8}, Groups{8, 8}, Groups{8, 16}, Groups{64, 2}}) {
      constexpr int kTimes = 50;
      const int64_t bytes = kib << 10, grid = int64_t{g.rows} * g.blocks;
      const double us = microseconds([&] {
                          read_by_groups_kernel<<<static_cast<unsigned>(grid), 512>>>(
                              from, bytes / static_cast<int64_t>(sizeof(float4)), g.blocks, kTimes, out);
                        }) /
                        kTimes;
      CHECK(cudaGetLastError());
      const std::string name = std::to_string(kib) + "kib_by_" + std::to_string(g.rows) + "x" + std::to_string(g.blocks);
      json.number("weights_us_" + name, us);
      json.number("weights_gb_s_" + name, static_cast<double>(g.rows * bytes) / us / 1e3);
    }
  }
  constexpr int kSteps = 4096;
  const double us = microseconds([&] { multiply_add_kernel<<<blocks, kThreads>>>(kSteps, 0.5f, out); });
  CHECK(cudaGetLastError());
  json.number("float32_gflop_s", 2.0 * 8 * kSteps * blocks * kThreads / us / 1e3);
  CHECK(cudaFree(from));
  CHECK(cudaFree(to));
  CHECK(cudaFree(out));
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "benchmarks/gpu_probe.cu: no GPU\n");
    return 1;
  }
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  Json json;
  describe(device, json);
  barriers(device, json);
  launches(json);
  rates(device, json);
  json.print();
  return 0;
}
