/* Loaded before the C library (LD_PRELOAD): counts the calls that change something below a folder, and
 * kills the process right after one of them, or lets it fail.  Linux; see merge_kills.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define CALLS 100000

static char folder[PATH_MAX];
static const char *calls[CALLS];
static long seen, chosen = -1;
static int code, once;

/* Begin to count.  At the number-th call, from 0, the process is killed, or, if error is not 0, the call
 * fails with that; all later ones too unless only_once. */
void arm(const char *below, long number, int error, int only_once) {
    strncpy(folder, below, sizeof folder - 1);
    seen = 0;
    chosen = number;
    code = error;
    once = only_once;
}

long calls_seen(void) { return seen; }

const char *call_name(long number) { return calls[number % CALLS]; }

static int is_below(const char *path) {
    return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int leads_below(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlink, link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

static int fails(const char *name) {
    calls[seen % CALLS] = name;
    long number = seen++;
    if (!code || chosen < 0 || number < chosen || (once && number > chosen)) return 0;
    errno = code;
    return 1;
}

static void maybe_die(void) {
    if (!code && chosen >= 0 && seen - 1 == chosen) kill(getpid(), SIGKILL);
}

#define WRAP(type, name, parameters, arguments, counts, failure)                          \
    type name parameters {                                                                \
        static type(*real) parameters;                                                    \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                    \
        if (!(counts)) return real arguments;                                             \
        if (fails(#name)) return failure;                                                 \
        type result = real arguments;                                                     \
        int error = errno;                                                                \
        maybe_die();                                                                      \
        errno = error;                                                                    \
        return result;                                                                    \
    }

WRAP(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), leads_below(fd), -1)
WRAP(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at),
     leads_below(fd), -1)
WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at),
     leads_below(fd), -1)
WRAP(int, ftruncate, (int fd, off_t size), (fd, size), leads_below(fd), -1)
WRAP(int, ftruncate64, (int fd, off64_t size), (fd, size), leads_below(fd), -1)
WRAP(int, posix_fallocate, (int fd, off_t at, off_t size), (fd, at, size), leads_below(fd), code)
WRAP(int, posix_fallocate64, (int fd, off64_t at, off64_t size), (fd, at, size), leads_below(fd),
     code)
WRAP(ssize_t, copy_file_range,
     (int from, off64_t *at, int to, off64_t *to_at, size_t size, unsigned flags),
     (from, at, to, to_at, size, flags), leads_below(to), -1)
WRAP(ssize_t, sendfile, (int to, int from, off_t *at, size_t size), (to, from, at, size),
     leads_below(to), -1)
WRAP(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t size), (to, from, at, size),
     leads_below(to), -1)
WRAP(int, fsync, (int fd), (fd), leads_below(fd), -1)
WRAP(int, rename, (const char *from, const char *to), (from, to), is_below(to), -1)
WRAP(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to),
     is_below(to), -1)
WRAP(int, link, (const char *from, const char *to), (from, to), is_below(to), -1)
WRAP(int, linkat, (int a, const char *from, int b, const char *to, int flags),
     (a, from, b, to, flags), is_below(to), -1)
WRAP(int, unlink, (const char *path), (path), is_below(path), -1)
WRAP(int, unlinkat, (int at, const char *path, int flags), (at, path, flags), is_below(path), -1)
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), is_below(path), -1)

#define WRAP_OPEN(name)                                                                   \
    int name(const char *path, int flags, ...) {                                          \
        static int (*real)(const char *, int, ...);                                       \
        if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);       \
        va_list rest;                                                                     \
        va_start(rest, flags);                                                            \
        mode_t mode = va_arg(rest, mode_t);                                               \
        va_end(rest);                                                                     \
        if (!(flags & O_CREAT) || !is_below(path)) return real(path, flags, mode);        \
        if (fails(#name)) return -1;                                                      \
        int result = real(path, flags, mode);                                             \
        maybe_die();                                                                      \
        return result;                                                                    \
    }

WRAP_OPEN(open)
WRAP_OPEN(open64)
