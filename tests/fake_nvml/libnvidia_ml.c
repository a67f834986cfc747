/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A stand-in for libnvidia-ml.so.1, for tests: the real nvidia-ml-py loads it and sees the machine that a profile
 * describes. The profile is the file $FAKE_NVML_PROFILE, or /etc/fake_nvml/profile.txt, one "key=value" per line:
 *
 *   system.init_error=18                  what nvmlInit answers (NVML return code), 0 or absent: success
 *   system.driver_version=580.95.05
 *   system.state_file=/run/fake_nvml      where settings (power limit, locked clocks, persistence) are kept, see below
 *   system.xid_events=0:31 1:79           XID events (card:xid), one for each wait for an event
 *   system.p2p=1,1,0,1,0                  P2P status between any two cards: read, write, nvlink, atomics, pci
 *   0.name=NVIDIA GeForce RTX 4090        a property of the card with NVML index 0; absent: NOT_SUPPORTED
 *   0.power_draw_milliwatts=90000;440000  several values: each reading gets the next, and after the last the first
 *   0.energy_counter=1                    the card counts energy, at the power that it draws under its limit
 *   0.error=15                            every call on this card answers this code
 *   0.error.nvmlDeviceGetPowerUsage=4     this call on this card answers this code
 *
 * What is set is written to the state file in the same form and seen by every process, as with a real driver:
 *   - removing the file is reloading the driver: everything is as in the profile again
 *   - a card without persistence mode forgets its settings when the process that made them ends (nvmlShutdown), because
 *     then the driver lets go of the card
 *
 * Functions that are not here are "function not found" to nvidia-ml-py, as with an old driver.
 */
#define _GNU_SOURCE
#include <nvml.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- profile and state ---- */

enum { MAX_ENTRIES = 1024, MAX_KEY = 96, MAX_VALUE = 160, SYSTEM = -1 };

typedef struct {
    char key[MAX_KEY], value[MAX_VALUE];
    unsigned int readings; /* of a value that is a series */
} Entry;

typedef struct {
    Entry entries[MAX_ENTRIES];
    int count;
} Table;

static Table profile;
static int initialized;

static int read_table(const char *path, Table *table)
{
    char line[MAX_KEY + MAX_VALUE];
    FILE *file = path ? fopen(path, "r") : NULL;

    table->count = 0;
    if (!file)
        return 0;
    while (table->count < MAX_ENTRIES && fgets(line, sizeof line, file)) {
        char *separator = strchr(line, '=');
        Entry *entry = &table->entries[table->count];
        if (line[0] == '#' || !separator)
            continue;
        *separator = '\0';
        separator[1 + strcspn(separator + 1, "\n")] = '\0';
        snprintf(entry->key, MAX_KEY, "%s", line);
        snprintf(entry->value, MAX_VALUE, "%s", separator + 1);
        entry->readings = 0;
        table->count++;
    }
    fclose(file);
    return 1;
}

static Entry *find(Table *table, const char *key)
{
    for (int i = 0; i < table->count; i++)
        if (!strcmp(table->entries[i].key, key))
            return &table->entries[i];
    return NULL;
}

static void make_key(char *key, int index, const char *name)
{
    if (index == SYSTEM)
        snprintf(key, MAX_KEY, "system.%s", name);
    else
        snprintf(key, MAX_KEY, "%d.%s", index, name);
}

static Entry *profile_entry(int index, const char *name)
{
    char key[MAX_KEY];

    make_key(key, index, name);
    return find(&profile, key);
}

static const char *state_path(void)
{
    Entry *entry = profile_entry(SYSTEM, "state_file");
    return entry ? entry->value : NULL;
}

static void write_state(const Table *state)
{
    char temporary[MAX_VALUE + 16];
    const char *path = state_path();
    FILE *file;

    if (!path)
        return;
    snprintf(temporary, sizeof temporary, "%s.%d", path, (int)getpid());
    file = fopen(temporary, "w");
    if (!file)
        return;
    for (int i = 0; i < state->count; i++)
        fprintf(file, "%s=%s\n", state->entries[i].key, state->entries[i].value);
    fclose(file);
    rename(temporary, path);
}

/* Keep a setting; NULL removes it. Without a state file it lasts as long as the process. */
static void set(int index, const char *name, const char *value)
{
    static Table state;
    Entry *entry;
    char key[MAX_KEY];

    make_key(key, index, name);
    if (!state_path()) {
        entry = find(&profile, key);
        if (!entry && value && profile.count < MAX_ENTRIES) {
            entry = &profile.entries[profile.count++];
            snprintf(entry->key, MAX_KEY, "%s", key);
        }
        if (entry)
            snprintf(entry->value, MAX_VALUE, "%s", value ? value : "");
        return;
    }
    read_table(state_path(), &state);
    entry = find(&state, key);
    if (!value) {
        if (!entry)
            return;
        *entry = state.entries[--state.count];
    } else {
        if (!entry) {
            entry = &state.entries[state.count++];
            snprintf(entry->key, MAX_KEY, "%s", key);
        }
        snprintf(entry->value, MAX_VALUE, "%s", value);
    }
    write_state(&state);
}

/* The value of "system.<name>" or "<index>.<name>", what was set before what the profile says, or NULL. */
static const char *lookup(int index, const char *name)
{
    static Table state;
    static char text[MAX_VALUE];
    Entry *entry;
    char key[MAX_KEY];

    make_key(key, index, name);
    if (state_path() && read_table(state_path(), &state) && (entry = find(&state, key)))
        return entry->value;
    entry = find(&profile, key);
    return entry && *entry->value ? (snprintf(text, sizeof text, "%s", entry->value), text) : NULL;
}

/* As lookup, and of a series the next value. */
static const char *reading(int index, const char *name)
{
    static char text[MAX_VALUE];
    Entry *entry = profile_entry(index, name);
    const char *value = lookup(index, name);
    unsigned int parts = 1, wanted;

    if (!value || !entry || !strchr(value, ';'))
        return value;
    for (const char *c = value; *c; c++)
        parts += *c == ';';
    wanted = entry->readings++ % parts;
    for (; wanted; wanted--)
        value = strchr(value, ';') + 1;
    snprintf(text, sizeof text, "%.*s", (int)strcspn(value, ";"), value);
    return text;
}

static unsigned long long number(int index, const char *name)
{
    const char *value = reading(index, name);
    return value ? strtoull(value, NULL, 0) : 0;
}

/* ---- helpers for the functions below ---- */

static char cards[64]; /* a card's handle is the address of its element */

static int index_of(nvmlDevice_t device)
{
    return (int)((char *)device - cards);
}

/* The error that the profile wants from this call on this card. */
static nvmlReturn_t injected(int index, const char *function)
{
    char name[MAX_KEY];

    if (!initialized)
        return NVML_ERROR_UNINITIALIZED;
    if (lookup(index, "error"))
        return (nvmlReturn_t)number(index, "error");
    snprintf(name, sizeof name, "error.%s", function);
    return (nvmlReturn_t)number(index, name);
}

static nvmlReturn_t give_unsigned(nvmlDevice_t device, const char *function, const char *name, unsigned int *result)
{
    int index = index_of(device);
    nvmlReturn_t error = injected(index, function);

    if (error)
        return error;
    if (!lookup(index, name))
        return NVML_ERROR_NOT_SUPPORTED;
    *result = (unsigned int)number(index, name);
    return NVML_SUCCESS;
}

static nvmlReturn_t give_text(int index, const char *function, const char *name, char *result, unsigned int length)
{
    nvmlReturn_t error = injected(index, function);
    const char *value = lookup(index, name);

    if (error)
        return error;
    if (!value)
        return NVML_ERROR_NOT_SUPPORTED;
    snprintf(result, length, "%s", value);
    return NVML_SUCCESS;
}

#define UNSIGNED_PROPERTY(function, name) \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *result) \
    { return give_unsigned(device, #function, name, result); }

#define TEXT_PROPERTY(function, name) \
    nvmlReturn_t function(nvmlDevice_t device, char *result, unsigned int length) \
    { return give_text(index_of(device), #function, name, result, length); }

/* ---- system ---- */

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    const char *path = getenv("FAKE_NVML_PROFILE");

    (void)flags;
    if (!read_table(path ? path : "/etc/fake_nvml/profile.txt", &profile))
        return NVML_ERROR_DRIVER_NOT_LOADED;
    if (number(SYSTEM, "init_error"))
        return (nvmlReturn_t)number(SYSTEM, "init_error");
    initialized = 1;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

nvmlReturn_t nvmlShutdown(void)
{
    int count = (int)number(SYSTEM, "count");

    if (!initialized)
        return NVML_ERROR_UNINITIALIZED;
    for (int index = 0; index < count; index++)
        if (!number(index, "persistence_mode")) {
            set(index, "power_limit_milliwatts", NULL);
            set(index, "locked_clocks_mhz", NULL);
        }
    initialized = 0;
    return NVML_SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t code)
{
    static char text[32];
    snprintf(text, sizeof text, "NVML error %d", code);
    return text;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *result, unsigned int length)
{
    return give_text(SYSTEM, "nvmlSystemGetDriverVersion", "driver_version", result, length);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *result)
{
    *result = (int)number(SYSTEM, "cuda_driver_version");
    return *result ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *result, unsigned int length)
{
    char name[MAX_KEY];

    snprintf(name, sizeof name, "process.%u", pid);
    if (!lookup(SYSTEM, name))
        return NVML_ERROR_NOT_FOUND;
    return give_text(SYSTEM, "nvmlSystemGetProcessName", name, result, length);
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *result)
{
    if (!initialized)
        return NVML_ERROR_UNINITIALIZED;
    *result = (unsigned int)number(SYSTEM, "count");
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *result)
{
    nvmlReturn_t error;

    if (index >= number(SYSTEM, "count"))
        return NVML_ERROR_INVALID_ARGUMENT;
    error = injected((int)index, "nvmlDeviceGetHandleByIndex_v2");
    if (error)
        return error;
    *result = (nvmlDevice_t)(cards + index);
    return NVML_SUCCESS;
}

/* ---- one card ---- */

TEXT_PROPERTY(nvmlDeviceGetName, "name")
TEXT_PROPERTY(nvmlDeviceGetUUID, "uuid")
UNSIGNED_PROPERTY(nvmlDeviceGetArchitecture, "architecture")
UNSIGNED_PROPERTY(nvmlDeviceGetMinorNumber, "minor_number")
UNSIGNED_PROPERTY(nvmlDeviceGetPowerManagementLimit, "power_limit_milliwatts")
UNSIGNED_PROPERTY(nvmlDeviceGetPowerManagementDefaultLimit, "power_limit_default_milliwatts")
UNSIGNED_PROPERTY(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation")
UNSIGNED_PROPERTY(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_generation_max")
UNSIGNED_PROPERTY(nvmlDeviceGetGpuMaxPcieLinkGeneration, "pcie_generation_device_max")
UNSIGNED_PROPERTY(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
UNSIGNED_PROPERTY(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max")
UNSIGNED_PROPERTY(nvmlDeviceGetMemoryBusWidth, "memory_bus_width_bits")

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *result)
{
    nvmlReturn_t error = injected(index_of(device), "nvmlDeviceGetPciInfo_v3");
    const char *address = lookup(index_of(device), "pci");

    if (error)
        return error;
    memset(result, 0, sizeof *result);
    if (!address || sscanf(address, "%x:%x:%x", &result->domain, &result->bus, &result->device) != 3)
        return NVML_ERROR_NOT_SUPPORTED;
    snprintf(result->busId, sizeof result->busId, "%08X:%02X:%02X.0", result->domain, result->bus & 0xff,
             result->device & 0xff);
    snprintf(result->busIdLegacy, sizeof result->busIdLegacy, "%04X:%02X:%02X.0", result->domain & 0xffff,
             result->bus & 0xff, result->device & 0xff);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    nvmlReturn_t error = injected(index_of(device), "nvmlDeviceGetCudaComputeCapability");
    const char *value = lookup(index_of(device), "compute_capability");

    if (error)
        return error;
    return value && sscanf(value, "%d.%d", major, minor) == 2 ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *result)
{
    int index = index_of(device);
    nvmlReturn_t error = injected(index, "nvmlDeviceGetMemoryInfo");

    if (error)
        return error;
    result->total = number(index, "memory_total_bytes");
    result->free = number(index, "memory_free_bytes");
    result->used = result->total - result->free;
    return result->total ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *result)
{
    int index = index_of(device);
    nvmlReturn_t error = injected(index, "nvmlDeviceGetMemoryInfo_v2");

    if (error)
        return error;
    result->total = number(index, "memory_total_bytes");
    result->free = number(index, "memory_free_bytes");
    result->reserved = number(index, "memory_reserved_bytes");
    result->used = result->total - result->free - result->reserved;
    return result->total ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *result)
{
    int index = index_of(device);
    nvmlReturn_t error = injected(index, "nvmlDeviceGetBAR1MemoryInfo");

    if (error)
        return error;
    result->bar1Total = result->bar1Free = number(index, "bar1_total_bytes");
    result->bar1Used = 0;
    return result->bar1Total ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *result)
{
    (void)sensor;
    return give_unsigned(device, "nvmlDeviceGetTemperature", "temperature_celsius", result);
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *result)
{
    int index = index_of(device);
    nvmlReturn_t error = injected(index, "nvmlDeviceGetCurrentClocksEventReasons");

    if (error)
        return error;
    if (!lookup(index, "clocks_event_reasons"))
        return NVML_ERROR_NOT_SUPPORTED;
    *result = number(index, "clocks_event_reasons");
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *result)
{
    const char *function = "nvmlDeviceGetUtilizationRates";
    nvmlReturn_t error = give_unsigned(device, function, "utilization_gpu_percent", &result->gpu);
    return error ? error : give_unsigned(device, function, "utilization_memory_percent", &result->memory);
}

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, nvmlEnableState_t *current, nvmlEnableState_t *pending)
{
    unsigned int mode = 0;
    nvmlReturn_t error = give_unsigned(device, "nvmlDeviceGetEccMode", "ecc_mode", &mode);

    *current = *pending = (nvmlEnableState_t)mode;
    return error;
}

/* "<index>.compute_processes=4242:23000000000 4343:1000000" (pid:bytes), likewise graphics_processes. */
static nvmlReturn_t give_processes(nvmlDevice_t device, const char *function, const char *name, unsigned int *count,
                                   nvmlProcessInfo_t *result)
{
    nvmlReturn_t error = injected(index_of(device), function);
    const char *value = lookup(index_of(device), name);
    unsigned int found = 0, capacity = *count;

    if (error)
        return error;
    while (value && *value) {
        char *end;
        unsigned int pid = (unsigned int)strtoul(value, &end, 10);
        unsigned long long bytes = strtoull(end + 1, &end, 10);
        if (found < capacity && result)
            result[found] = (nvmlProcessInfo_t){.pid = pid, .usedGpuMemory = bytes};
        found++;
        value = end + strspn(end, " ");
    }
    *count = found;
    return found > capacity ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *result)
{
    return give_processes(device, "nvmlDeviceGetComputeRunningProcesses_v3", "compute_processes", count, result);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *result)
{
    return give_processes(device, "nvmlDeviceGetGraphicsRunningProcesses_v3", "graphics_processes", count, result);
}

/* ---- links between cards ---- */

/* "<index>.nvlink.<link>=1": a card that has one link answers "invalid argument" for links that it does not have. */
nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, nvmlEnableState_t *result)
{
    int index = index_of(device);
    nvmlReturn_t error = injected(index, "nvmlDeviceGetNvLinkState");
    char name[MAX_KEY];

    if (error)
        return error;
    if (!lookup(index, "nvlink.0"))
        return NVML_ERROR_NOT_SUPPORTED;
    snprintf(name, sizeof name, "nvlink.%u", link);
    if (!lookup(index, name))
        return NVML_ERROR_INVALID_ARGUMENT;
    *result = (nvmlEnableState_t)number(index, name);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t one, nvmlDevice_t other, nvmlGpuP2PCapsIndex_t capability,
                                    nvmlGpuP2PStatus_t *result)
{
    nvmlReturn_t error = injected(index_of(one), "nvmlDeviceGetP2PStatus");
    const char *value = lookup(SYSTEM, "p2p");

    (void)other;
    if (error)
        return error;
    for (int i = 0; value && i < (int)capability; i++)
        value = strchr(value, ',') ? strchr(value, ',') + 1 : NULL;
    if (!value)
        return NVML_ERROR_NOT_SUPPORTED;
    *result = (nvmlGpuP2PStatus_t)strtoul(value, NULL, 10);
    return NVML_SUCCESS;
}

/* ---- power, clocks, persistence ---- */

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *lowest,
                                                          unsigned int *highest)
{
    const char *function = "nvmlDeviceGetPowerManagementLimitConstraints";
    nvmlReturn_t error = give_unsigned(device, function, "power_limit_min_milliwatts", lowest);
    return error ? error : give_unsigned(device, function, "power_limit_max_milliwatts", highest);
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *result)
{
    const char *own = "power_limit_enforced_milliwatts"; /* lower than the limit where something else caps the card */
    const char *name = lookup(index_of(device), own) ? own : "power_limit_milliwatts";
    return give_unsigned(device, "nvmlDeviceGetEnforcedPowerLimit", name, result);
}

nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned int milliwatts)
{
    nvmlReturn_t error = injected(index_of(device), "nvmlDeviceSetPowerManagementLimit");
    unsigned int lowest, highest;
    char text[16];

    if (!error)
        error = nvmlDeviceGetPowerManagementLimitConstraints(device, &lowest, &highest);
    if (error)
        return error;
    if (milliwatts < lowest || milliwatts > highest)
        return NVML_ERROR_INVALID_ARGUMENT;
    snprintf(text, sizeof text, "%u", milliwatts);
    set(index_of(device), "power_limit_milliwatts", text);
    return NVML_SUCCESS;
}

/* No card draws more than its limit allows. */
static nvmlReturn_t draw(nvmlDevice_t device, const char *function, unsigned int *milliwatts)
{
    nvmlReturn_t error = give_unsigned(device, function, "power_draw_milliwatts", milliwatts);
    unsigned long long limit = number(index_of(device), "power_limit_milliwatts");

    if (!error && limit && *milliwatts > limit)
        *milliwatts = (unsigned int)limit;
    return error;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *result)
{
    return draw(device, "nvmlDeviceGetPowerUsage", result);
}

/* Only differences mean anything, and only while the limit stays as it is. */
nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules)
{
    unsigned int milliwatts;
    struct timespec now;
    nvmlReturn_t error;

    if (!lookup(index_of(device), "energy_counter"))
        return NVML_ERROR_NOT_SUPPORTED;
    error = draw(device, "nvmlDeviceGetTotalEnergyConsumption", &milliwatts);
    clock_gettime(CLOCK_MONOTONIC, &now);
    *millijoules = (unsigned long long)((double)milliwatts * ((double)now.tv_sec + (double)now.tv_nsec / 1e9));
    return error;
}

static nvmlReturn_t give_clock(nvmlDevice_t device, const char *function, nvmlClockType_t type, const char *suffix,
                               unsigned int *result)
{
    static const char *const types[] = {"graphics", "sm", "memory", "video"};
    char name[MAX_KEY];

    if ((int)type < 0 || (int)type > 3)
        return NVML_ERROR_INVALID_ARGUMENT;
    snprintf(name, sizeof name, "clock_%s%s_mhz", types[type], suffix);
    return give_unsigned(device, function, name, result);
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *result)
{
    nvmlReturn_t error = give_clock(device, "nvmlDeviceGetClockInfo", type, "", result);
    const char *lock = lookup(index_of(device), "locked_clocks_mhz");
    unsigned int lowest, highest;

    if (!error && type <= NVML_CLOCK_SM && lock && sscanf(lock, "%u,%u", &lowest, &highest) == 2) {
        *result = *result < lowest ? lowest : *result;
        *result = *result > highest ? highest : *result;
    }
    return error;
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *result)
{
    return give_clock(device, "nvmlDeviceGetMaxClockInfo", type, "_max", result);
}

nvmlReturn_t nvmlDeviceSetGpuLockedClocks(nvmlDevice_t device, unsigned int lowest, unsigned int highest)
{
    nvmlReturn_t error = injected(index_of(device), "nvmlDeviceSetGpuLockedClocks");
    unsigned int most = 0;
    char text[32];

    if (!error)
        error = nvmlDeviceGetMaxClockInfo(device, NVML_CLOCK_GRAPHICS, &most);
    if (error)
        return error;
    if (lowest > highest || highest > most)
        return NVML_ERROR_INVALID_ARGUMENT;
    snprintf(text, sizeof text, "%u,%u", lowest, highest);
    set(index_of(device), "locked_clocks_mhz", text);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceResetGpuLockedClocks(nvmlDevice_t device)
{
    nvmlReturn_t error = injected(index_of(device), "nvmlDeviceResetGpuLockedClocks");

    if (!error)
        set(index_of(device), "locked_clocks_mhz", NULL);
    return error;
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t *result)
{
    unsigned int mode = 0;
    nvmlReturn_t error = give_unsigned(device, "nvmlDeviceGetPersistenceMode", "persistence_mode", &mode);

    *result = (nvmlEnableState_t)mode;
    return error;
}

nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t mode)
{
    nvmlReturn_t error = injected(index_of(device), "nvmlDeviceSetPersistenceMode");

    if (error)
        return error;
    if (!lookup(index_of(device), "persistence_mode"))
        return NVML_ERROR_NOT_SUPPORTED;
    set(index_of(device), "persistence_mode", mode ? "1" : "0");
    return NVML_SUCCESS;
}

/* ---- events ---- */

enum { MAX_WATCHED = 64 };
static unsigned char watched[MAX_WATCHED]; /* cards whose XID events are waited for */
static int delivered;                      /* how many of system.xid_events */

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set_of_events)
{
    memset(watched, 0, sizeof watched);
    delivered = 0;
    *set_of_events = (nvmlEventSet_t)watched;
    return initialized ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set_of_events)
{
    (void)set_of_events;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set_of_events)
{
    nvmlReturn_t error = injected(index_of(device), "nvmlDeviceRegisterEvents");

    (void)set_of_events;
    if (!error && types & nvmlEventTypeXidCriticalError)
        watched[index_of(device)] = 1;
    return error;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set_of_events, nvmlEventData_t *result, unsigned int milliseconds)
{
    const char *events = lookup(SYSTEM, "xid_events");
    struct timespec pause = {milliseconds / 1000, (long)(milliseconds % 1000) * 1000000};
    int position = 0;

    (void)set_of_events;
    for (; events && *events; events += strcspn(events, " "), events += strspn(events, " "), position++) {
        unsigned int index, xid;
        if (sscanf(events, "%u:%u", &index, &xid) != 2 || position < delivered || !watched[index % MAX_WATCHED])
            continue;
        delivered = position + 1;
        memset(result, 0, sizeof *result);
        result->device = (nvmlDevice_t)(cards + index);
        result->eventType = nvmlEventTypeXidCriticalError;
        result->eventData = xid;
        return NVML_SUCCESS;
    }
    nanosleep(&pause, NULL);
    return NVML_ERROR_TIMEOUT;
}
