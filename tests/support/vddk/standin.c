/* A stand-in for VMware's libvixDiskLib: the calls that nbdkit's vddk plugin makes, over a raw file.
 *
 * <libdir>/disk.raw is the disk, <libdir>/password the password that is taken. What was called is told in <libdir>/calls.
 * Names, arguments and numbers are those of VMware's published programming interface.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef uint64_t VixError;
enum { OK = 0, FAILED = 1, NO_PERMISSION = 13, BAD_LOGIN = 18, NO_FILE = 4, READ_ONLY = 24, ASYNC = 25000 };
enum { SECTOR = 512 };

struct params {
  char *vmx_spec, *server_name, *thumb_print;
  long private_use;
  int cred_type;
  union {
    struct { char *user, *password; } uid;
    struct { char *cookie, *user, *key; } session;
  } creds;
  uint32_t port, nfc_host_port;
  char *vim_api_version;
  char reserved[8];
  void *state;
  char room[256];
};
struct geometry { uint32_t cylinders, heads, sectors; };
struct info {
  struct geometry bios, physical;
  uint64_t capacity;
  int adapter_type, links;
  char *parent_hint, *uuid;
  uint32_t logical_sector, physical_sector;
};
struct block { uint64_t offset, length; };
struct block_list { uint32_t count; struct block blocks[1]; };
struct disk { int fd; int read_only; uint64_t sectors; };
typedef void (*completion)(void *, VixError);

static char directory[4096];
static char reason[512];
static char modes[] = "file:san:hotadd:nbdssl:nbd";

static void tell(const char *format, ...) {
  char path[4200];
  snprintf(path, sizeof path, "%s/calls", directory);
  FILE *file = fopen(path, "a");
  if (!file) return;
  va_list arguments;
  va_start(arguments, format);
  vfprintf(file, format, arguments);
  va_end(arguments);
  fputc('\n', file);
  fclose(file);
}

VixError VixDiskLib_InitEx(uint32_t major, uint32_t minor, void *log, void *warn, void *panic, const char *lib,
                           const char *config) {
  snprintf(directory, sizeof directory, "%s", lib);
  tell("init %u.%u", major, minor);
  return OK;
}
void VixDiskLib_Exit(void) { tell("exit"); }
char *VixDiskLib_GetErrorText(VixError error, const char *locale) {
  if (error == BAD_LOGIN) snprintf(reason, sizeof reason, "Cannot connect to host: user name or password is wrong");
  else if (error == NO_FILE) snprintf(reason, sizeof reason, "A file was not found");
  else if (error == READ_ONLY) snprintf(reason, sizeof reason, "The disk is open for reading only");
  else snprintf(reason, sizeof reason, "Error %llu of the stand-in", (unsigned long long) error);
  return strdup(reason);
}
void VixDiskLib_FreeErrorText(char *text) { free(text); }
const char *VixDiskLib_ListTransportModes(void) { return modes; }
struct params *VixDiskLib_AllocateConnectParams(void) { return calloc(1, sizeof(struct params)); }
void VixDiskLib_FreeConnectParams(struct params *params) { free(params); }

VixError VixDiskLib_ConnectEx(const struct params *params, char read_only, const char *snapshot, const char *transports,
                              void **connection) {
  char path[4200], wanted[256] = "";
  snprintf(path, sizeof path, "%s/password", directory);
  FILE *file = fopen(path, "r");
  if (file) {
    if (!fgets(wanted, sizeof wanted, file)) wanted[0] = 0;
    fclose(file);
  }
  wanted[strcspn(wanted, "\n")] = 0;
  tell("connect server=%s port=%u user=%s vm=%s snapshot=%s transports=%s thumbprint=%s readonly=%d", params->server_name,
       params->port, params->creds.uid.user, params->vmx_spec, snapshot ? snapshot : "", transports ? transports : "",
       params->thumb_print ? params->thumb_print : "", read_only);
  if (!params->creds.uid.password || strcmp(wanted, params->creds.uid.password)) return BAD_LOGIN;
  *connection = strdup(transports ? transports : "nbd");
  return OK;
}
VixError VixDiskLib_Disconnect(void *connection) {
  tell("disconnect");
  free(connection);
  return OK;
}
VixError VixDiskLib_Open(void *connection, const char *path, uint32_t flags, struct disk **opened) {
  char raw[4200];
  struct stat found;
  tell("open %s flags=%u", path, flags);
  snprintf(raw, sizeof raw, "%s/disk.raw", directory);
  int read_only = (flags & 4) != 0;
  int fd = open(raw, read_only ? O_RDONLY : O_RDWR);
  if (fd < 0) return NO_FILE;
  if (fstat(fd, &found)) return FAILED;
  struct disk *disk = calloc(1, sizeof *disk);
  disk->fd = fd;
  disk->read_only = read_only;
  disk->sectors = found.st_size / SECTOR;
  *opened = disk;
  return OK;
}
VixError VixDiskLib_Close(struct disk *disk) {
  tell("close");
  close(disk->fd);
  free(disk);
  return OK;
}
const char *VixDiskLib_GetTransportMode(struct disk *disk) { return "nbdssl"; }
VixError VixDiskLib_GetInfo(struct disk *disk, struct info **answer) {
  struct info *info = calloc(1, sizeof *info);
  info->capacity = disk->sectors;
  info->links = 1;
  info->logical_sector = info->physical_sector = SECTOR;
  *answer = info;
  return OK;
}
void VixDiskLib_FreeInfo(struct info *info) { free(info); }

static int broken(void) {
  char path[4200];
  snprintf(path, sizeof path, "%s/broken", directory);
  return access(path, F_OK) == 0;
}
VixError VixDiskLib_Read(struct disk *disk, uint64_t sector, uint64_t count, unsigned char *buffer) {
  size_t length = count * SECTOR;
  if (broken()) return FAILED;
  return pread(disk->fd, buffer, length, sector * SECTOR) == (ssize_t) length ? OK : FAILED;
}
VixError VixDiskLib_Write(struct disk *disk, uint64_t sector, uint64_t count, const unsigned char *buffer) {
  size_t length = count * SECTOR;
  if (disk->read_only) return READ_ONLY;
  if (broken()) return FAILED;
  return pwrite(disk->fd, buffer, length, sector * SECTOR) == (ssize_t) length ? OK : FAILED;
}
VixError VixDiskLib_ReadAsync(struct disk *disk, uint64_t sector, uint64_t count, unsigned char *buffer, completion done,
                              void *data) {
  done(data, VixDiskLib_Read(disk, sector, count, buffer));
  return ASYNC;
}
VixError VixDiskLib_WriteAsync(struct disk *disk, uint64_t sector, uint64_t count, const unsigned char *buffer, completion done,
                               void *data) {
  done(data, VixDiskLib_Write(disk, sector, count, buffer));
  return ASYNC;
}
VixError VixDiskLib_Wait(struct disk *disk) { return OK; }
VixError VixDiskLib_Flush(struct disk *disk) {
  tell("flush");
  return fsync(disk->fd) ? FAILED : OK;
}
VixError VixDiskLib_Create(void *connection, const char *path, const void *parameters, void *progress, void *data) {
  return FAILED;
}

/* Whole chunks that hold anything but zeros. */
VixError VixDiskLib_QueryAllocatedBlocks(struct disk *disk, uint64_t start, uint64_t count, uint64_t chunk,
                                         struct block_list **answer) {
  struct block_list *list = calloc(1, sizeof *list + (count / chunk + 1) * sizeof(struct block));
  unsigned char *buffer = malloc(chunk * SECTOR);
  for (uint64_t at = start; at < start + count; at += chunk) {
    uint64_t part = start + count - at < chunk ? start + count - at : chunk;
    ssize_t got = pread(disk->fd, buffer, part * SECTOR, at * SECTOR);
    int empty = 1;
    for (ssize_t i = 0; i < got; i++)
      if (buffer[i]) { empty = 0; break; }
    if (empty) continue;
    list->blocks[list->count].offset = at;
    list->blocks[list->count++].length = part;
  }
  free(buffer);
  *answer = list;
  return OK;
}
VixError VixDiskLib_FreeBlockList(struct block_list *list) {
  free(list);
  return OK;
}
