/* Counts what a process does to the files under a folder; kills it at the n-th, or lets the disk be full from the n-th on.

   LD_PRELOAD=points.so POINTS_UNDER=/folder POINTS_LOG=/file [POINTS_DIE_AT=n [POINTS_TEAR=TEXT]] [POINTS_FAIL_AT=n] program

   Each creation, write, flush, change of size or of name, and deletion of a file under the folder is one point and one
   line of the log: "pid number what path". With POINTS_DIE_AT the process is killed just before the n-th; with
   POINTS_TEAR, when that is a write to a file whose path holds the text, after half of its bytes. With POINTS_FAIL_AT
   the n-th write and every later one fails as on a full disk. DuckDB writes with pwrite, write, fdatasync, ftruncate, fallocate and remove, Python with
   write, fsync, rename, unlink, mkdir and link; `remove` is libc's own way around `unlink`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)

static atomic_int points;

enum { GO_ON, HALF, FULL };

static ssize_t plain_write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    return real(fd, data, n);
}

static int plain_open(const char *path, int flags, mode_t mode) {
    REAL(int, "open", const char *, int, ...);
    return real(path, flags, mode);
}

static int under(const char *path) {
    const char *folder = getenv("POINTS_UNDER");
    return folder && *folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static _Noreturn void die(void) {
    for (;;) kill(getpid(), SIGKILL);
}

/* One point. Dies here, unless a write is to be torn (HALF) or is to fail (FULL). */
static int point(const char *what, const char *path, int writes) {
    if (!under(path)) return GO_ON;
    int number = atomic_fetch_add(&points, 1) + 1;
    const char *log = getenv("POINTS_LOG");
    if (log) {
        int fd = plain_open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (fd >= 0) {
            char line[PATH_MAX + 64];
            int n = snprintf(line, sizeof line, "%d %d %s %s\n", (int)getpid(), number, what, path);
            plain_write(fd, line, n);
            close(fd);
        }
    }
    const char *last = getenv("POINTS_DIE_AT"), *full = getenv("POINTS_FAIL_AT"), *torn = getenv("POINTS_TEAR");
    if (last && number >= atoi(last)) {
        if (writes && torn && strstr(path, torn)) return HALF;
        die();
    }
    return writes && full && number >= atoi(full) ? FULL : GO_ON;
}

static int point_on(const char *what, int fd, int writes) {
    if (!getenv("POINTS_UNDER")) return GO_ON;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return GO_ON;
    path[n] = 0;
    return point(what, path, writes);
}

static int full_disk(void) {
    errno = ENOSPC;
    return -1;
}

#define WRITE(fd, all, half) do { \
    int what = point_on("write", fd, 1); \
    if (what == FULL) return full_disk(); \
    if (what == HALF) { if (half < 0) die(); die(); } \
    return all; } while (0)

ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    WRITE(fd, real(fd, data, n), real(fd, data, n / 2));
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    WRITE(fd, real(fd, data, n, at), real(fd, data, n / 2, at));
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    WRITE(fd, real(fd, data, n, at), real(fd, data, n / 2, at));
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    WRITE(fd, real(fd, parts, n), real(fd, parts, n / 2));
}

ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) {
    REAL(ssize_t, "pwritev", int, const struct iovec *, int, off_t);
    WRITE(fd, real(fd, parts, n, at), real(fd, parts, n / 2, at));
}

ssize_t pwritev64(int fd, const struct iovec *parts, int n, off64_t at) {
    REAL(ssize_t, "pwritev64", int, const struct iovec *, int, off64_t);
    WRITE(fd, real(fd, parts, n, at), real(fd, parts, n / 2, at));
}

int fallocate(int fd, int mode, off_t at, off_t n) {
    REAL(int, "fallocate", int, int, off_t, off_t);
    WRITE(fd, real(fd, mode, at, n), real(fd, mode, at, n / 2));
}

int posix_fallocate(int fd, off_t at, off_t n) {
    REAL(int, "posix_fallocate", int, off_t, off_t);
    if (point_on("write", fd, 1) == FULL) return ENOSPC;
    return real(fd, at, n);
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    point_on("flush", fd, 0);
    return real(fd);
}

int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    point_on("flush", fd, 0);
    return real(fd);
}

int ftruncate(int fd, off_t size) {
    REAL(int, "ftruncate", int, off_t);
    point_on("truncate", fd, 0);
    return real(fd, size);
}

int ftruncate64(int fd, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t);
    point_on("truncate", fd, 0);
    return real(fd, size);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    point("rename", from, 0);
    return real(from, to);
}

int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    point("rename", from, 0);
    return real(a, from, b, to);
}

int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    point("link", from, 0);
    return real(from, to);
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    if (access(path, F_OK) == 0) point("delete", path, 0);
    return real(path);
}

int unlinkat(int at, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    if (faccessat(at, path, F_OK, 0) == 0) point("delete", path, 0);
    return real(at, path, flags);
}

int remove(const char *path) {
    REAL(int, "remove", const char *);
    if (access(path, F_OK) == 0) point("delete", path, 0);
    return real(path);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    if (access(path, F_OK) != 0) point("create", path, 0);
    return real(path, mode);
}

/* A file is made, or emptied, by opening it. */
static void opened(const char *path, int flags) {
    if (!(flags & (O_CREAT | O_TRUNC)) || !under(path)) return;
    if (access(path, F_OK) != 0) point("create", path, 0);
    else if (flags & O_TRUNC) point("truncate", path, 0);
}

#define MODE(flags) mode_t mode = 0; do { if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } } while (0)

int open(const char *path, int flags, ...) {
    MODE(flags);
    opened(path, flags);
    return plain_open(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(int, "open64", const char *, int, ...);
    MODE(flags);
    opened(path, flags);
    return real(path, flags, mode);
}

int openat(int at, const char *path, int flags, ...) {
    REAL(int, "openat", int, const char *, int, ...);
    MODE(flags);
    opened(path, flags);
    return real(at, path, flags, mode);
}
