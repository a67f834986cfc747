// SPDX-License-Identifier: GPL-3.0-or-later
// Compiled to prove a toolkit, and run to prove it together with a driver: adds two vectors and checks the sum.
#include <cstdio>
#ifdef WITH_NCCL
#include <nccl.h>
#endif

static __global__ void add(const float *a, const float *b, float *sum, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        sum[i] = a[i] + b[i];
    }
}

int main() {
#ifdef WITH_NCCL
    int nccl = 0;
    if (ncclGetVersion(&nccl) != ncclSuccess || nccl != NCCL_VERSION_CODE) {
        fprintf(stderr, "NCCL %d answers, not %d\n", nccl, NCCL_VERSION_CODE);
        return 1;
    }
#endif
    const int n = 1000;
    float *a, *b, *sum;
    cudaError_t error = cudaMallocManaged(&a, n * sizeof(float));
    if (error == cudaSuccess) error = cudaMallocManaged(&b, n * sizeof(float));
    if (error == cudaSuccess) error = cudaMallocManaged(&sum, n * sizeof(float));
    if (error == cudaSuccess) {
        for (int i = 0; i < n; i++) {
            a[i] = i;
            b[i] = 2 * i;
        }
        add<<<(n + 255) / 256, 256>>>(a, b, sum, n);
        error = cudaGetLastError();
    }
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    if (error != cudaSuccess) {
        fprintf(stderr, "CUDA error %d: %s\n", (int) error, cudaGetErrorString(error));
        return 1;
    }
    for (int i = 0; i < n; i++) {
        if (sum[i] != 3 * i) {
            fprintf(stderr, "element %d is %g, not %d\n", i, sum[i], 3 * i);
            return 1;
        }
    }
    return 0;
}
