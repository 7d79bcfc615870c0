/* A stand-in for NVIDIA's libnvidia-ml.so.1, at its C interface, for machines without a GPU.
 *
 * It tells what the file named by STAND_IN_NVML says, which may change while it is used; a word a line:
 *
 *   driver CODE                                          every call that opens or counts fails with this nvmlReturn_t
 *   gpu INDEX UTIL USED TOTAL MILLIWATTS CELSIUS REASONS
 *   instance INDEX NUMBER USED TOTAL                     MIG is on, and this is one of the instances
 *   process UNIT PID BYTES SM                            UNIT is 0, or 0:1 for an instance; SM below zero is no sample
 *   fails INDEX FUNCTION CODE                            that call of that GPU fails, or with * each of them
 *
 * With STAND_IN_NVML_CALLS the name of each function that is called is added to that file.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { MAX_UNITS = 256, MAX_PROCESSES = 256, MAX_FAILURES = 64, NAME = 64 };

typedef int nvmlReturn_t;
typedef struct unit {
  int there, gpu, number; /* number of an instance, -1 of a GPU */
  unsigned utilization, milliwatts, celsius;
  unsigned long long used, total, reasons;
} *nvmlDevice_t;
typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct { unsigned version; int sensor, temperature; } nvmlTemperature_t;
typedef struct { unsigned pid; unsigned long long usedGpuMemory; unsigned gpuInstanceId, computeInstanceId; } nvmlProcessInfo_t;
typedef struct {
  unsigned pid;
  unsigned long long timeStamp;
  unsigned smUtil, memUtil, encUtil, decUtil;
} nvmlProcessUtilizationSample_t;

static struct unit units[MAX_UNITS];
static struct { int gpu, number; unsigned pid; unsigned long long bytes; int sm; } processes[MAX_PROCESSES];
static struct { int gpu; char function[NAME]; int code; } failures[MAX_FAILURES];
static int num_units, num_processes, num_failures, driver, is_open;
static struct timespec read_at;
static off_t read_size;

static nvmlDevice_t find(int gpu, int number) {
  for (int at = 0; at < num_units; at++)
    if (units[at].gpu == gpu && units[at].number == number) return &units[at];
  if (num_units == MAX_UNITS) abort();
  units[num_units] = (struct unit){.gpu = gpu, .number = number};
  return &units[num_units++];
}

static void read_state(void) {
  const char *path = getenv("STAND_IN_NVML");
  struct stat about;
  if (!path || stat(path, &about)) { num_processes = num_failures = driver = 0; return; }
  if (about.st_mtim.tv_sec == read_at.tv_sec && about.st_mtim.tv_nsec == read_at.tv_nsec && about.st_size == read_size) return;
  read_at = about.st_mtim, read_size = about.st_size;
  num_processes = num_failures = driver = 0;
  for (int at = 0; at < num_units; at++) units[at].there = 0; /* handles that were given stay pointers to something */
  FILE *file = fopen(path, "r");
  char line[256], unit[NAME];
  while (file && fgets(line, sizeof line, file)) {
    struct unit it = {.there = 1, .number = -1};
    if (sscanf(line, "driver %d", &driver) == 1) continue;
    if (sscanf(line, "gpu %d %u %llu %llu %u %u %llx", &it.gpu, &it.utilization, &it.used, &it.total, &it.milliwatts,
               &it.celsius, &it.reasons) == 7 ||
        sscanf(line, "instance %d %d %llu %llu", &it.gpu, &it.number, &it.used, &it.total) == 4) {
      *find(it.gpu, it.number) = it;
    } else if (num_processes < MAX_PROCESSES &&
               sscanf(line, "process %63s %u %llu %d", unit, &processes[num_processes].pid, &processes[num_processes].bytes,
                      &processes[num_processes].sm) == 4) {
      processes[num_processes].number = -1;
      sscanf(unit, "%d:%d", &processes[num_processes].gpu, &processes[num_processes].number);
      num_processes++;
    } else if (num_failures < MAX_FAILURES && sscanf(line, "fails %d %63s %d", &failures[num_failures].gpu,
                                                     failures[num_failures].function, &failures[num_failures].code) == 3) {
      num_failures++;
    }
  }
  if (file) fclose(file);
}

static int is_cut(int gpu) {
  for (int at = 0; at < num_units; at++)
    if (units[at].there && units[at].gpu == gpu && units[at].number >= 0) return 1;
  return 0;
}

static void note(const char *function) {
  const char *path = getenv("STAND_IN_NVML_CALLS");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (file) fprintf(file, "%s\n", function), fclose(file);
}

static nvmlReturn_t check(const char *function, int gpu) {
  note(function);
  read_state();
  if (!is_open) return UNINITIALIZED;
  for (int at = 0; at < num_failures; at++)
    if (failures[at].gpu == gpu && (!strcmp(failures[at].function, "*") || !strcmp(failures[at].function, function)))
      return failures[at].code;
  return SUCCESS;
}

#define CHECK(device) \
  do { \
    nvmlReturn_t found = check(__func__, (device)->gpu); \
    if (found) return found; \
  } while (0)
#define ONLY_WHOLE(device) \
  do { \
    if ((device)->number >= 0) return NOT_SUPPORTED; \
  } while (0)

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  note(__func__);
  read_state();
  is_open = !driver;
  return driver;
}

nvmlReturn_t nvmlShutdown(void) {
  nvmlReturn_t found = is_open ? SUCCESS : UNINITIALIZED;
  is_open = 0;
  return found;
}

const char *nvmlErrorString(nvmlReturn_t code) {
  (void)code;
  return "an error of the stand-in";
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
  nvmlReturn_t found = check(__func__, -1);
  if (found || driver) return found ? found : driver;
  *count = 0;
  for (int at = 0; at < num_units; at++) *count += units[at].there && units[at].number < 0;
  return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
  nvmlReturn_t found = check(__func__, (int)index);
  if (found) return found;
  *device = find((int)index, -1);
  return (*device)->there ? SUCCESS : INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned length) {
  CHECK(device);
  snprintf(name, length, device->number < 0 ? "Stand-in GPU" : "Stand-in GPU MIG 1g.10gb");
  return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
  CHECK(device);
  ONLY_WHOLE(device);
  if (is_cut(device->gpu)) return NOT_SUPPORTED; /* as the driver does while MIG is on */
  *rates = (nvmlUtilization_t){.gpu = device->utilization};
  return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
  CHECK(device);
  *memory = (nvmlMemory_t){device->total, device->total - device->used, device->used};
  return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
  CHECK(device);
  if (memory->version != (sizeof *memory | 2 << 24)) return INVALID_ARGUMENT;
  *memory = (nvmlMemory_v2_t){memory->version, device->total, 0, device->total - device->used, device->used};
  return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *milliwatts) {
  CHECK(device);
  ONLY_WHOLE(device);
  *milliwatts = device->milliwatts;
  return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature) {
  CHECK(device);
  ONLY_WHOLE(device);
  temperature->temperature = (int)device->celsius;
  return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
  CHECK(device);
  ONLY_WHOLE(device);
  *reasons = device->reasons;
  return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
  CHECK(device);
  ONLY_WHOLE(device);
  *current = *pending = (unsigned)is_cut(device->gpu);
  return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *count) {
  CHECK(device);
  *count = 7;
  return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned number, nvmlDevice_t *instance) {
  CHECK(device);
  *instance = find(device->gpu, (int)number);
  return (*instance)->there ? SUCCESS : NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *found) {
  CHECK(device);
  unsigned num_found = 0, room = found ? *count : 0;
  for (int at = 0; at < num_processes; at++) {
    if (processes[at].gpu != device->gpu || (device->number >= 0 && processes[at].number != device->number)) continue;
    if (num_found < room)
      found[num_found] = (nvmlProcessInfo_t){processes[at].pid, processes[at].bytes, (unsigned)processes[at].number, 0};
    num_found++;
  }
  *count = num_found;
  return num_found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples, unsigned *count,
                                             unsigned long long since) {
  CHECK(device);
  ONLY_WHOLE(device);
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  unsigned long long at_us = (unsigned long long)now.tv_sec * 1000000 + (unsigned long long)now.tv_nsec / 1000;
  unsigned num_found = 0, room = samples ? *count : 0;
  for (int at = 0; at < num_processes; at++) {
    if (processes[at].gpu != device->gpu || processes[at].sm < 0 || at_us <= since) continue;
    if (num_found < room)
      samples[num_found] = (nvmlProcessUtilizationSample_t){processes[at].pid, at_us, (unsigned)processes[at].sm, 0, 0, 0};
    num_found++;
  }
  *count = num_found;
  return !num_found ? NOT_FOUND : num_found > room ? INSUFFICIENT_SIZE : SUCCESS;
}
