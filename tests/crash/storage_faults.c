/* Loaded before the C library (LD_PRELOAD): lets calls on files below a folder fail, or take long, as a
 * control file says that is mapped by everybody concerned, so that faults come and go while processes
 * live.  Linux; see storage.py, which fills the control file. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITES = 1, SYNCS = 2, NAMES = 4, LOCKS = 8, CUTS = 16 };

struct control {
    volatile unsigned kinds; /* of calls, which are hit; 0: none */
    volatile int error;      /* that they fail with; 0: they succeed */
    volatile unsigned delay_ms;
    volatile unsigned hits;
    char below[PATH_MAX];
};

static struct control *control;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("MLE_TEST_FAULTS");
    int fd = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED) control = mapped;
    syscall(SYS_close, fd);
}

static int is_below(const char *path) {
    size_t length = strlen(control->below);
    if (!path || !length || strncmp(path, control->below, length) != 0) return 0;
    return path[length] == '/' || path[length] == 0;
}

static int leads_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlink, link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

static int wanted(unsigned kind) { return control && (control->kinds & kind); }

/* Take the time a fault takes.  Returns: whether the call fails, with errno set. */
static int hit(void) {
    __sync_fetch_and_add(&control->hits, 1);
    unsigned delay = control->delay_ms;
    if (delay) {
        struct timespec rest = {delay / 1000, (delay % 1000) * 1000000L};
        nanosleep(&rest, NULL);
    }
    errno = control->error;
    return control->error != 0;
}

#define WRAP(type, name, parameters, arguments, kind, concerns, failure)            \
    type name parameters {                                                          \
        static type(*real) parameters;                                              \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);              \
        if (wanted(kind) && (concerns) && hit()) return failure;                    \
        return real arguments;                                                      \
    }

WRAP(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), WRITES,
     leads_below(fd), -1)
WRAP(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), WRITES,
     leads_below(fd), -1)
WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at),
     WRITES, leads_below(fd), -1)
WRAP(ssize_t, pwritev, (int fd, const struct iovec *data, int count, off_t at), (fd, data, count, at),
     WRITES, leads_below(fd), -1)
WRAP(ssize_t, pwritev64, (int fd, const struct iovec *data, int count, off64_t at),
     (fd, data, count, at), WRITES, leads_below(fd), -1)
WRAP(ssize_t, pwritev2, (int fd, const struct iovec *data, int count, off_t at, int flags),
     (fd, data, count, at, flags), WRITES, leads_below(fd), -1)
WRAP(ssize_t, pwritev64v2, (int fd, const struct iovec *data, int count, off64_t at, int flags),
     (fd, data, count, at, flags), WRITES, leads_below(fd), -1)
WRAP(int, posix_fallocate, (int fd, off_t at, off_t size), (fd, at, size), WRITES, leads_below(fd),
     control->error)
WRAP(int, posix_fallocate64, (int fd, off64_t at, off64_t size), (fd, at, size), WRITES,
     leads_below(fd), control->error)
WRAP(ssize_t, copy_file_range,
     (int from, off64_t *at, int to, off64_t *to_at, size_t size, unsigned flags),
     (from, at, to, to_at, size, flags), WRITES, leads_below(to), -1)
WRAP(ssize_t, sendfile, (int to, int from, off_t *at, size_t size), (to, from, at, size), WRITES,
     leads_below(to), -1)
WRAP(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t size), (to, from, at, size), WRITES,
     leads_below(to), -1)
WRAP(int, ftruncate, (int fd, off_t size), (fd, size), CUTS, leads_below(fd), -1)
WRAP(int, ftruncate64, (int fd, off64_t size), (fd, size), CUTS, leads_below(fd), -1)
WRAP(int, fsync, (int fd), (fd), SYNCS, leads_below(fd), -1)
WRAP(int, fdatasync, (int fd), (fd), SYNCS, leads_below(fd), -1)
WRAP(int, rename, (const char *from, const char *to), (from, to), NAMES, is_below(to), -1)
WRAP(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), NAMES,
     is_below(to), -1)
WRAP(int, link, (const char *from, const char *to), (from, to), NAMES, is_below(to), -1)
WRAP(int, linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags),
     NAMES, is_below(to), -1)
WRAP(int, unlink, (const char *path), (path), CUTS, is_below(path), -1)
WRAP(int, unlinkat, (int at, const char *path, int flags), (at, path, flags), CUTS, is_below(path), -1)
WRAP(int, rmdir, (const char *path), (path), CUTS, is_below(path), -1)
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), NAMES, is_below(path), -1)
WRAP(int, flock, (int fd, int operation), (fd, operation), LOCKS, leads_below(fd), -1)

#define WRAP_FCNTL(name)                                                            \
    int name(int fd, int command, ...) {                                            \
        static int (*real)(int, int, ...);                                          \
        if (!real) real = (int (*)(int, int, ...))dlsym(RTLD_NEXT, #name);          \
        va_list rest;                                                               \
        va_start(rest, command);                                                    \
        void *argument = va_arg(rest, void *);                                      \
        va_end(rest);                                                               \
        int locks = command == F_SETLK || command == F_SETLKW;                      \
        if (locks && wanted(LOCKS) && leads_below(fd) && hit()) return -1;          \
        return real(fd, command, argument);                                         \
    }

WRAP_FCNTL(fcntl)
WRAP_FCNTL(fcntl64)

#define WRAP_OPEN(name)                                                             \
    int name(const char *path, int flags, ...) {                                    \
        static int (*real)(const char *, int, ...);                                 \
        if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        va_list rest;                                                               \
        va_start(rest, flags);                                                      \
        mode_t mode = va_arg(rest, mode_t);                                         \
        va_end(rest);                                                               \
        if ((flags & O_CREAT) && wanted(NAMES) && is_below(path) && hit()) return -1; \
        return real(path, flags, mode);                                             \
    }

WRAP_OPEN(open)
WRAP_OPEN(open64)
