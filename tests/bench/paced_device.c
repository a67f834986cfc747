/* LD_PRELOAD for ggml-rpc-server: a device of a known speed. It computes nothing, and waits for as long as such a device
 * would compute: nodes of the graph * (PACE_US_NODE + PACE_US_TOKEN * tokens) microseconds. Memory, protocol and the
 * order of all messages stay llama.cpp's own. A pause does not depend on what else runs on the machine.
 *
 * cc -O2 -shared -fPIC -o paced_device.so paced_device.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct ggml_cgraph;
struct ggml_tensor;

static void *found(const char *name) {
    void *symbol = dlsym(RTLD_DEFAULT, name);
    if (!symbol) {
        fprintf(stderr, "paced_device: %s is not found\n", name);
        abort();
    }
    return symbol;
}

static int pause_for(struct ggml_cgraph *graph) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    int (*count)(struct ggml_cgraph *) = (int (*)(struct ggml_cgraph *)) found("ggml_graph_n_nodes");
    struct ggml_tensor *(*node)(struct ggml_cgraph *, int) =
        (struct ggml_tensor * (*) (struct ggml_cgraph *, int) ) found("ggml_graph_node");
    int64_t (*rows)(const struct ggml_tensor *) = (int64_t(*)(const struct ggml_tensor *)) found("ggml_nrows");
    int nodes = count(graph);
    /* the first node of a graph has a row for each token */
    double tokens = nodes > 0 ? (double) rows(node(graph, 0)) : 0.0;
    double us = nodes * (atof(getenv("PACE_US_NODE")) + atof(getenv("PACE_US_TOKEN")) * tokens);
    int64_t end = until.tv_sec * 1000000000LL + until.tv_nsec + (int64_t) (1000.0 * us);
    until.tv_sec = end / 1000000000LL;
    until.tv_nsec = end % 1000000000LL;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0) {
    }
    return 0;
}

int ggml_backend_graph_compute(void *backend, struct ggml_cgraph *graph) {
    (void) backend;
    return pause_for(graph);
}

int ggml_backend_graph_compute_async(void *backend, struct ggml_cgraph *graph) {
    (void) backend;
    return pause_for(graph);
}
