/* Reads NVML the way a feature-discovery program does, with declarations of its own, and prints what it sees.
 * Written against the C interface as documented, so that it shares no layout with the library under test. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct device *device_t;
typedef struct gpu_instance *gpu_instance_t;
typedef struct compute_instance *compute_instance_t;

struct memory { unsigned long long total, free, used; };
struct pci { char bus_id_legacy[16]; unsigned domain, bus, device, device_id, subsystem_id; char bus_id[32]; };
struct attributes { unsigned sm, copy, decoder, encoder, jpeg, ofa, gi_slices, ci_slices; unsigned long long memory_mb; };
struct fabric { unsigned char cluster[16]; int status; unsigned clique; unsigned char state; };
struct placement { unsigned start, size; };
struct gi_info { device_t device; unsigned id, profile; struct placement placement; };
struct ci_info { device_t device; gpu_instance_t gi; unsigned id, profile; struct placement placement; };
struct gi_profile { unsigned id, p2p, slices, instances, sm, copy, decoder, encoder, jpeg, ofa; unsigned long long memory_mb; };
struct ci_profile { unsigned id, slices, instances, sm, copy, decoder, encoder, jpeg, ofa; };

static void *library;
static const char *(*error_string)(int);

static void *symbol(const char *name) {
    void *found = dlsym(library, name);
    if (!found) { fprintf(stderr, "no symbol %s\n", name); exit(2); }
    return found;
}

#define CALL(name, types, ...) do { \
        int code = ((int (*) types)symbol(#name))(__VA_ARGS__); \
        if (code) { fprintf(stderr, "%s: %d %s\n", #name, code, error_string(code)); exit(3); } \
    } while (0)
#define TRY(name, types, ...) (((int (*) types)symbol(#name))(__VA_ARGS__))

static void read_mig(device_t gpu, unsigned n) {
    device_t mig, parent;
    if (TRY(nvmlDeviceGetMigDeviceHandleByIndex, (device_t, unsigned, device_t *), gpu, n, &mig) == 6) return;
    char uuid[96], name[96];
    unsigned gi, ci;
    struct attributes a;
    CALL(nvmlDeviceGetUUID, (device_t, char *, unsigned), mig, uuid, sizeof uuid);
    CALL(nvmlDeviceGetName, (device_t, char *, unsigned), mig, name, sizeof name);
    CALL(nvmlDeviceGetAttributes_v2, (device_t, struct attributes *), mig, &a);
    CALL(nvmlDeviceGetGpuInstanceId, (device_t, unsigned *), mig, &gi);
    CALL(nvmlDeviceGetComputeInstanceId, (device_t, unsigned *), mig, &ci);
    CALL(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, (device_t, device_t *), mig, &parent);

    gpu_instance_t gpu_instance;
    compute_instance_t compute_instance;
    struct gi_info gi_info;
    struct ci_info ci_info;
    CALL(nvmlDeviceGetGpuInstanceById, (device_t, unsigned, gpu_instance_t *), parent, gi, &gpu_instance);
    CALL(nvmlGpuInstanceGetInfo, (gpu_instance_t, struct gi_info *), gpu_instance, &gi_info);
    CALL(nvmlGpuInstanceGetComputeInstanceById, (gpu_instance_t, unsigned, compute_instance_t *), gpu_instance, ci, &compute_instance);
    CALL(nvmlComputeInstanceGetInfo_v2, (compute_instance_t, struct ci_info *), compute_instance, &ci_info);
    unsigned gi_slices = 0, ci_slices = 0;
    for (unsigned p = 0; p < 17; p++) {
        struct gi_profile info;
        if (TRY(nvmlDeviceGetGpuInstanceProfileInfo, (device_t, unsigned, struct gi_profile *), parent, p, &info) == 0 && info.id == gi_info.profile)
            gi_slices = info.slices;
    }
    for (unsigned p = 0; p < 8; p++) {
        struct ci_profile info;
        if (TRY(nvmlGpuInstanceGetComputeInstanceProfileInfo, (gpu_instance_t, unsigned, unsigned, struct ci_profile *), gpu_instance, p, 0, &info) == 0 && info.id == ci_info.profile)
            ci_slices = info.slices;
    }
    printf("mig %s|%s|gi %u ci %u|same parent %d|slices %u/%u|%llu MiB|sm %u copy %u dec %u enc %u jpeg %u ofa %u\n", uuid, name, gi, ci,
           parent == gpu && gi_info.device == gpu && ci_info.gi == gpu_instance, gi_slices, ci_slices, a.memory_mb, a.sm, a.copy, a.decoder, a.encoder, a.jpeg, a.ofa);
}

static void read_gpu(unsigned n) {
    device_t gpu;
    char name[96], uuid[96];
    struct memory memory;
    struct pci pci;
    int major, minor;
    unsigned mode, pending, migs = 0;
    CALL(nvmlDeviceGetHandleByIndex_v2, (unsigned, device_t *), n, &gpu);
    CALL(nvmlDeviceGetName, (device_t, char *, unsigned), gpu, name, sizeof name);
    CALL(nvmlDeviceGetUUID, (device_t, char *, unsigned), gpu, uuid, sizeof uuid);
    CALL(nvmlDeviceGetMemoryInfo, (device_t, struct memory *), gpu, &memory);
    CALL(nvmlDeviceGetCudaComputeCapability, (device_t, int *, int *), gpu, &major, &minor);
    CALL(nvmlDeviceGetPciInfo_v3, (device_t, struct pci *), gpu, &pci);
    printf("gpu %u|%s|%s|%llu MiB|cc %d.%d|pci %s %s %08x\n", n, name, uuid, memory.total >> 20, major, minor, pci.bus_id_legacy, pci.bus_id, pci.device_id);
    struct fabric fabric;
    if (TRY(nvmlDeviceGetGpuFabricInfo, (device_t, struct fabric *), gpu, &fabric) == 0) {
        printf("fabric ");
        for (int i = 0; i < 16; i++) printf("%02x", fabric.cluster[i]);
        printf(".%u|state %u|status %d\n", fabric.clique, fabric.state, fabric.status);
    }
    int code = TRY(nvmlDeviceGetMigMode, (device_t, unsigned *, unsigned *), gpu, &mode, &pending);
    if (code) { printf("mig mode: %s\n", error_string(code)); return; }
    CALL(nvmlDeviceGetMaxMigDeviceCount, (device_t, unsigned *), gpu, &migs);
    printf("mig mode %u/%u|at most %u\n", mode, pending, migs);
    for (unsigned m = 0; m < migs; m++) read_mig(gpu, m);
}

int main(int argc, char **argv) {
    (void)argc;
    library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) { fprintf(stderr, "dlopen: %s\n", dlerror()); return 1; }
    error_string = (const char *(*)(int))symbol("nvmlErrorString");
    int code = TRY(nvmlInit_v2, (void));
    if (code) { printf("init: %d %s\n", code, error_string(code)); return 0; }
    char version[96];
    int cuda, cuda_v2;
    unsigned count;
    CALL(nvmlSystemGetDriverVersion, (char *, unsigned), version, sizeof version);
    CALL(nvmlSystemGetCudaDriverVersion, (int *), &cuda);
    CALL(nvmlSystemGetCudaDriverVersion_v2, (int *), &cuda_v2);
    CALL(nvmlDeviceGetCount_v2, (unsigned *), &count);
    printf("driver %s|cuda %d %d|%u GPUs\n", version, cuda, cuda_v2, count);
    for (unsigned n = 0; n < count; n++) read_gpu(n);
    CALL(nvmlShutdown, (void));
    return 0;
}
