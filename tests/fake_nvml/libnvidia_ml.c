/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A stand-in for libnvidia-ml.so.1, for tests: the real nvidia-ml-py loads it and sees the machine that the file
 * $FAKE_NVML_PROFILE describes, one "key=value" per line:
 *
 *   system.init_error=18                  what nvmlInit answers (NVML return code), 0 or absent: success
 *   system.driver_version=580.95.05
 *   0.name=NVIDIA GeForce RTX 4090        a property of the card with NVML index 0; absent: NOT_SUPPORTED
 *   0.error=15                            every call on this card answers this code
 *   0.error.nvmlDeviceGetPowerUsage=4     this call on this card answers this code
 *
 * Functions that are not here are "function not found" to nvidia-ml-py, as with an old driver.
 * The declarations below are the part of NVML's binary interface that is used here; sizes and order follow nvml.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9
};

typedef int Return;
typedef struct Device *Handle;

typedef struct {
    char bus_id_legacy[16];
    unsigned int domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} PciInfo;

typedef struct {
    unsigned long long total, free, used;
} Memory;

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} MemoryV2;

typedef struct {
    unsigned long long total, free, used;
} Bar1Memory;

typedef struct {
    unsigned int pid;
    unsigned long long used_memory;
    unsigned int gpu_instance, compute_instance;
} Process;

/* ---- the description file ---- */

enum { MAX_ENTRIES = 1024, MAX_KEY = 96, MAX_VALUE = 160, SYSTEM = -1 };

static struct { char key[MAX_KEY], value[MAX_VALUE]; } entries[MAX_ENTRIES];
static int entry_count;
static int initialized;

static int load_profile(void)
{
    const char *path = getenv("FAKE_NVML_PROFILE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[MAX_KEY + MAX_VALUE];

    if (!file)
        return 0;
    entry_count = 0;
    while (entry_count < MAX_ENTRIES && fgets(line, sizeof line, file)) {
        char *separator = strchr(line, '=');
        if (line[0] == '#' || !separator)
            continue;
        *separator = '\0';
        separator[1 + strcspn(separator + 1, "\n")] = '\0';
        snprintf(entries[entry_count].key, MAX_KEY, "%s", line);
        snprintf(entries[entry_count].value, MAX_VALUE, "%s", separator + 1);
        entry_count++;
    }
    fclose(file);
    return 1;
}

/* The value of "system.<name>" or "<index>.<name>", or NULL. */
static const char *lookup(int index, const char *name)
{
    char key[MAX_KEY];

    if (index == SYSTEM)
        snprintf(key, sizeof key, "system.%s", name);
    else
        snprintf(key, sizeof key, "%d.%s", index, name);
    for (int i = 0; i < entry_count; i++)
        if (!strcmp(entries[i].key, key))
            return entries[i].value;
    return NULL;
}

static unsigned long long number(int index, const char *name)
{
    const char *value = lookup(index, name);
    return value ? strtoull(value, NULL, 0) : 0;
}

/* ---- helpers for the functions below ---- */

static char cards[64]; /* a card's handle is the address of its element */

static int index_of(Handle device)
{
    return (int)((char *)device - cards);
}

/* The error that the profile wants from this call on this card. */
static Return injected(int index, const char *function)
{
    char name[MAX_KEY];

    if (!initialized)
        return UNINITIALIZED;
    if (lookup(index, "error"))
        return (Return)number(index, "error");
    snprintf(name, sizeof name, "error.%s", function);
    return (Return)number(index, name);
}

static Return give_unsigned(Handle device, const char *function, const char *name, unsigned int *result)
{
    int index = index_of(device);
    Return error = injected(index, function);

    if (error)
        return error;
    if (!lookup(index, name))
        return NOT_SUPPORTED;
    *result = (unsigned int)number(index, name);
    return SUCCESS;
}

static Return give_text(int index, const char *function, const char *name, char *result, unsigned int length)
{
    Return error = injected(index, function);
    const char *value = lookup(index, name);

    if (error)
        return error;
    if (!value)
        return NOT_SUPPORTED;
    snprintf(result, length, "%s", value);
    return SUCCESS;
}

#define UNSIGNED_PROPERTY(function, name) \
    Return function(Handle device, unsigned int *result) { return give_unsigned(device, #function, name, result); }

#define TEXT_PROPERTY(function, name) \
    Return function(Handle device, char *result, unsigned int length) \
    { return give_text(index_of(device), #function, name, result, length); }

/* ---- system ---- */

Return nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    if (!load_profile())
        return DRIVER_NOT_LOADED;
    if (number(SYSTEM, "init_error"))
        return (Return)number(SYSTEM, "init_error");
    initialized = 1;
    return SUCCESS;
}

Return nvmlShutdown(void)
{
    initialized = 0;
    return SUCCESS;
}

const char *nvmlErrorString(Return code)
{
    static char text[32];
    snprintf(text, sizeof text, "NVML error %d", code);
    return text;
}

Return nvmlSystemGetDriverVersion(char *result, unsigned int length)
{
    return give_text(SYSTEM, "nvmlSystemGetDriverVersion", "driver_version", result, length);
}

Return nvmlSystemGetCudaDriverVersion_v2(int *result)
{
    *result = (int)number(SYSTEM, "cuda_driver_version");
    return *result ? SUCCESS : NOT_SUPPORTED;
}

Return nvmlSystemGetProcessName(unsigned int pid, char *result, unsigned int length)
{
    char name[MAX_KEY];

    snprintf(name, sizeof name, "process.%u", pid);
    if (!lookup(SYSTEM, name))
        return NOT_FOUND;
    return give_text(SYSTEM, "nvmlSystemGetProcessName", name, result, length);
}

Return nvmlDeviceGetCount_v2(unsigned int *result)
{
    if (!initialized)
        return UNINITIALIZED;
    *result = (unsigned int)number(SYSTEM, "count");
    return SUCCESS;
}

Return nvmlDeviceGetHandleByIndex_v2(unsigned int index, Handle *result)
{
    Return error;

    if (index >= number(SYSTEM, "count"))
        return INVALID_ARGUMENT;
    error = injected((int)index, "nvmlDeviceGetHandleByIndex_v2");
    if (error)
        return error;
    *result = (Handle)(cards + index);
    return SUCCESS;
}

/* ---- one card ---- */

TEXT_PROPERTY(nvmlDeviceGetName, "name")
TEXT_PROPERTY(nvmlDeviceGetUUID, "uuid")
UNSIGNED_PROPERTY(nvmlDeviceGetArchitecture, "architecture")
UNSIGNED_PROPERTY(nvmlDeviceGetPersistenceMode, "persistence_mode")
UNSIGNED_PROPERTY(nvmlDeviceGetPowerUsage, "power_draw_milliwatts")
UNSIGNED_PROPERTY(nvmlDeviceGetPowerManagementLimit, "power_limit_milliwatts")
UNSIGNED_PROPERTY(nvmlDeviceGetPowerManagementDefaultLimit, "power_limit_default_milliwatts")
UNSIGNED_PROPERTY(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation")
UNSIGNED_PROPERTY(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_generation_max")
UNSIGNED_PROPERTY(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
UNSIGNED_PROPERTY(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max")
UNSIGNED_PROPERTY(nvmlDeviceGetMemoryBusWidth, "memory_bus_width_bits")

Return nvmlDeviceGetPciInfo_v3(Handle device, PciInfo *result)
{
    Return error = injected(index_of(device), "nvmlDeviceGetPciInfo_v3");
    const char *address = lookup(index_of(device), "pci");

    if (error)
        return error;
    memset(result, 0, sizeof *result);
    if (!address || sscanf(address, "%x:%x:%x", &result->domain, &result->bus, &result->device) != 3)
        return NOT_SUPPORTED;
    snprintf(result->bus_id, sizeof result->bus_id, "%08X:%02X:%02X.0", result->domain, result->bus, result->device);
    snprintf(result->bus_id_legacy, sizeof result->bus_id_legacy, "%04X:%02X:%02X.0", result->domain & 0xffff,
             result->bus & 0xff, result->device & 0xff);
    return SUCCESS;
}

Return nvmlDeviceGetCudaComputeCapability(Handle device, int *major, int *minor)
{
    Return error = injected(index_of(device), "nvmlDeviceGetCudaComputeCapability");
    const char *value = lookup(index_of(device), "compute_capability");

    if (error)
        return error;
    return value && sscanf(value, "%d.%d", major, minor) == 2 ? SUCCESS : NOT_SUPPORTED;
}

Return nvmlDeviceGetPowerManagementLimitConstraints(Handle device, unsigned int *lowest, unsigned int *highest)
{
    const char *function = "nvmlDeviceGetPowerManagementLimitConstraints";
    Return error = give_unsigned(device, function, "power_limit_min_milliwatts", lowest);
    return error ? error : give_unsigned(device, function, "power_limit_max_milliwatts", highest);
}

Return nvmlDeviceGetMemoryInfo(Handle device, Memory *result)
{
    int index = index_of(device);
    Return error = injected(index, "nvmlDeviceGetMemoryInfo");

    if (error)
        return error;
    result->total = number(index, "memory_total_bytes");
    result->free = number(index, "memory_free_bytes");
    result->used = result->total - result->free;
    return result->total ? SUCCESS : NOT_SUPPORTED;
}

Return nvmlDeviceGetMemoryInfo_v2(Handle device, MemoryV2 *result)
{
    int index = index_of(device);
    Return error = injected(index, "nvmlDeviceGetMemoryInfo_v2");

    if (error)
        return error;
    result->total = number(index, "memory_total_bytes");
    result->free = number(index, "memory_free_bytes");
    result->reserved = number(index, "memory_reserved_bytes");
    result->used = result->total - result->free - result->reserved;
    return result->total ? SUCCESS : NOT_SUPPORTED;
}

Return nvmlDeviceGetBAR1MemoryInfo(Handle device, Bar1Memory *result)
{
    int index = index_of(device);
    Return error = injected(index, "nvmlDeviceGetBAR1MemoryInfo");

    if (error)
        return error;
    result->total = result->free = number(index, "bar1_total_bytes");
    result->used = 0;
    return result->total ? SUCCESS : NOT_SUPPORTED;
}

static Return give_clock(Handle device, const char *function, int type, const char *suffix, unsigned int *result)
{
    static const char *const types[] = {"graphics", "sm", "memory", "video"};
    char name[MAX_KEY];

    if (type < 0 || type > 3)
        return INVALID_ARGUMENT;
    snprintf(name, sizeof name, "clock_%s%s_mhz", types[type], suffix);
    return give_unsigned(device, function, name, result);
}

Return nvmlDeviceGetClockInfo(Handle device, int type, unsigned int *result)
{
    return give_clock(device, "nvmlDeviceGetClockInfo", type, "", result);
}

Return nvmlDeviceGetMaxClockInfo(Handle device, int type, unsigned int *result)
{
    return give_clock(device, "nvmlDeviceGetMaxClockInfo", type, "_max", result);
}

Return nvmlDeviceGetTemperature(Handle device, int sensor, unsigned int *result)
{
    (void)sensor;
    return give_unsigned(device, "nvmlDeviceGetTemperature", "temperature_celsius", result);
}

Return nvmlDeviceGetCurrentClocksEventReasons(Handle device, unsigned long long *result)
{
    int index = index_of(device);
    Return error = injected(index, "nvmlDeviceGetCurrentClocksEventReasons");

    if (error)
        return error;
    *result = number(index, "clocks_event_reasons");
    return lookup(index, "clocks_event_reasons") ? SUCCESS : NOT_SUPPORTED;
}

/* "<index>.compute_processes=4242:23000000000 4343:1000000" (pid:bytes), likewise graphics_processes. */
static Return give_processes(Handle device, const char *function, const char *name, unsigned int *count, Process *result)
{
    Return error = injected(index_of(device), function);
    const char *value = lookup(index_of(device), name);
    unsigned int found = 0, capacity = *count;

    if (error)
        return error;
    while (value && *value) {
        char *end;
        unsigned int pid = (unsigned int)strtoul(value, &end, 10);
        unsigned long long bytes = strtoull(end + 1, &end, 10);
        if (found < capacity && result)
            result[found] = (Process){pid, bytes, 0, 0};
        found++;
        value = end + strspn(end, " ");
    }
    *count = found;
    return found > capacity ? INSUFFICIENT_SIZE : SUCCESS;
}

Return nvmlDeviceGetComputeRunningProcesses_v3(Handle device, unsigned int *count, Process *result)
{
    return give_processes(device, "nvmlDeviceGetComputeRunningProcesses_v3", "compute_processes", count, result);
}

Return nvmlDeviceGetGraphicsRunningProcesses_v3(Handle device, unsigned int *count, Process *result)
{
    return give_processes(device, "nvmlDeviceGetGraphicsRunningProcesses_v3", "graphics_processes", count, result);
}
