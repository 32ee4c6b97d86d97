/* cuBLAS and cuBLASLt: handles that remember their modes, and products that are not computed. The workspaces
 * are torch's own: it allocates them through its allocator before it calls. Types are plain, as the headers of
 * cuBLAS need a CUDA compiler's. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define SUCCEEDS(name) \
    int name(void) { return 0; }

/* ---- cuBLAS ---- */

struct handle {
    int math_mode, pointer_mode;
};

int cublasCreate_v2(struct handle **handle) { return *handle = calloc(1, sizeof **handle), 0; }
int cublasDestroy_v2(struct handle *handle) { return free(handle), 0; }
int cublasSetMathMode(struct handle *handle, int mode) { return handle->math_mode = mode, 0; }
int cublasGetMathMode(struct handle *handle, int *mode) { return *mode = handle->math_mode, 0; }
int cublasSetPointerMode_v2(struct handle *handle, int mode) { return handle->pointer_mode = mode, 0; }
int cublasGetPointerMode_v2(struct handle *handle, int *mode) { return *mode = handle->pointer_mode, 0; }
SUCCEEDS(cublasSetStream_v2)
SUCCEEDS(cublasSetWorkspace_v2)

#define FOR_EACH_TYPE(product) \
    SUCCEEDS(cublasS##product) SUCCEEDS(cublasD##product) SUCCEEDS(cublasC##product) SUCCEEDS(cublasZ##product)
FOR_EACH_TYPE(gemm_v2)
FOR_EACH_TYPE(gemmStridedBatched)
FOR_EACH_TYPE(gemv_v2)
FOR_EACH_TYPE(trsm_v2)
FOR_EACH_TYPE(trsmBatched)
SUCCEEDS(cublasSgemmEx)
SUCCEEDS(cublasGemmEx)
SUCCEEDS(cublasGemmStridedBatchedEx)
SUCCEEDS(cublasSdot_v2)
SUCCEEDS(cublasDdot_v2)
SUCCEEDS(cublasDotEx)

/* ---- cuBLASLt: every descriptor is an empty box ---- */

struct heuristic_result { /* cublasLtMatmulHeuristicResult_t */
    uint64_t algorithm[8];
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

int cublasLtCreate(void **handle) { return *handle = calloc(1, 8), 0; }
int cublasLtDestroy(void *handle) { return free(handle), 0; }
int cublasLtMatmulDescCreate(void **box, int compute, int scale) {
    (void)compute, (void)scale;
    return *box = calloc(1, 8), 0;
}
int cublasLtMatrixLayoutCreate(void **box, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    (void)type, (void)rows, (void)columns, (void)stride;
    return *box = calloc(1, 8), 0;
}
int cublasLtMatmulPreferenceCreate(void **box) { return *box = calloc(1, 8), 0; }
int cublasLtMatmulDescDestroy(void *box) { return free(box), 0; }
int cublasLtMatrixLayoutDestroy(void *box) { return free(box), 0; }
int cublasLtMatmulPreferenceDestroy(void *box) { return free(box), 0; }
SUCCEEDS(cublasLtMatmulDescSetAttribute)
SUCCEEDS(cublasLtMatrixLayoutSetAttribute)
SUCCEEDS(cublasLtMatmulPreferenceSetAttribute)
SUCCEEDS(cublasLtMatmul)

/* One algorithm that needs no workspace; torch has taken its workspace by then, whatever the answer. */
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c, void *d, void *preference,
                                   int wanted, struct heuristic_result *results, int *found) {
    (void)handle, (void)product, (void)a, (void)b, (void)c, (void)d, (void)preference, (void)wanted;
    results[0] = (struct heuristic_result){.waves = 1};
    return *found = 1, 0;
}
