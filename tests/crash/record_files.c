/* Loaded before the C library (LD_PRELOAD): writes down every change of a file or folder below
 * MLE_RECORD_BELOW, with the bytes, into MLE_RECORD_TO, in the order in which they happened.
 * Linux; read by recorded_disk.py, which says what the records are. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static int trace = -1;
/* One call at a time, so that the order written down is that of the disk. */
static pthread_mutex_t turn = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

static void before_fork(void) { pthread_mutex_lock(&turn); }
static void after_fork(void) { pthread_mutex_unlock(&turn); }

__attribute__((constructor)) static void begin(void) {
    const char *below = getenv("MLE_RECORD_BELOW"), *to = getenv("MLE_RECORD_TO");
    if (!below || !to) return;
    strncpy(folder, below, sizeof folder - 1);
    trace = syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    pthread_atfork(before_fork, after_fork, after_fork);
}

static int is_below(const char *path) {
    size_t length = strlen(folder);
    return trace >= 0 && strncmp(path, folder, length) == 0 && (path[length] == '/' || !path[length]);
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlink, link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static int leads_below(int fd) {
    char path[PATH_MAX];
    return trace >= 0 && path_of(fd, path) && is_below(path);
}

/* The absolute path that a call means. */
static const char *meant(int at, const char *path, char *out) {
    static const char pinned[] = "/proc/self/fd/"; /* then a number, and a name in that folder */
    if (!strncmp(path, pinned, sizeof pinned - 1)) {
        char *rest;
        at = strtol(path + sizeof pinned - 1, &rest, 10);
        if (*rest != '/') return path;
        path = rest + 1;
    }
    if (path[0] == '/') return path;
    char base[PATH_MAX];
    if (at == AT_FDCWD ? !getcwd(base, sizeof base) : !path_of(at, base)) base[0] = 0;
    snprintf(out, PATH_MAX, "%s/%s", base, path);
    return out;
}

static uint64_t inode(int fd) {
    struct stat facts;
    return fstat(fd, &facts) ? 0 : facts.st_ino;
}

static uint64_t inode_at(const char *path) {
    struct stat facts;
    return lstat(path, &facts) ? 0 : facts.st_ino;
}

struct record {
    uint32_t kind;
    uint32_t path, other; /* bytes of two paths, which follow */
    uint64_t inode, offset, size; /* bytes of data follow those */
} __attribute__((packed));

static void note(char kind, uint64_t number, uint64_t offset, const void *data, uint64_t size,
                 const char *path, const char *other) {
    struct record head = {kind, path ? strlen(path) : 0, other ? strlen(other) : 0,
                          number, offset, data ? size : 0};
    struct iovec parts[] = {{&head, sizeof head},
                            {(void *)path, head.path},
                            {(void *)other, head.other},
                            {(void *)data, head.size}};
    if (syscall(SYS_writev, trace, parts, 4) < (ssize_t)sizeof head) abort();
}

/* What was written is read back: the bytes may come from several buffers, or from another file. */
static void note_written(int fd, uint64_t offset, ssize_t size) {
    char own[64], *data = malloc(size);
    snprintf(own, sizeof own, "/proc/self/fd/%d", fd);
    int again = syscall(SYS_openat, AT_FDCWD, own, O_RDONLY | O_CLOEXEC, 0);
    if (!data || again < 0 || pread(again, data, size, offset) != size) abort();
    syscall(SYS_close, again);
    note('w', inode(fd), offset, data, size, NULL, NULL);
    free(data);
}

#define REAL(type, name, parameters)                                    \
    static type(*real) parameters;                                      \
    if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);

#define WRITES(name, parameters, arguments, to, where)                  \
    ssize_t name parameters {                                           \
        REAL(ssize_t, name, parameters)                                 \
        if (!leads_below(to)) return real arguments;                    \
        pthread_mutex_lock(&turn);                                      \
        ssize_t result = real arguments;                                \
        int error = errno;                                              \
        if (result > 0) note_written(to, where, result);                \
        pthread_mutex_unlock(&turn);                                    \
        errno = error;                                                  \
        return result;                                                  \
    }

#define HERE(fd) ((uint64_t)lseek(fd, 0, SEEK_CUR) - result)

WRITES(write, (int fd, const void *data, size_t size), (fd, data, size), fd, HERE(fd))
WRITES(writev, (int fd, const struct iovec *parts, int n), (fd, parts, n), fd, HERE(fd))
WRITES(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), fd, at)
WRITES(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), fd, at)
WRITES(pwritev, (int fd, const struct iovec *parts, int n, off_t at), (fd, parts, n, at), fd, at)
WRITES(pwritev64, (int fd, const struct iovec *parts, int n, off64_t at), (fd, parts, n, at), fd, at)
WRITES(pwritev2, (int fd, const struct iovec *parts, int n, off_t at, int flags),
       (fd, parts, n, at, flags), fd, at)
WRITES(pwritev64v2, (int fd, const struct iovec *parts, int n, off64_t at, int flags),
       (fd, parts, n, at, flags), fd, at)
WRITES(copy_file_range,
       (int from, off64_t *at, int to, off64_t *to_at, size_t size, unsigned flags),
       (from, at, to, to_at, size, flags), to, (to_at ? (uint64_t)*to_at - result : HERE(to)))
WRITES(sendfile, (int to, int from, off_t *at, size_t size), (to, from, at, size), to, HERE(to))
WRITES(sendfile64, (int to, int from, off64_t *at, size_t size), (to, from, at, size), to, HERE(to))

#define CHANGES(name, parameters, arguments, concerns, noted)           \
    int name parameters {                                               \
        REAL(int, name, parameters)                                     \
        if (!(concerns)) return real arguments;                         \
        pthread_mutex_lock(&turn);                                      \
        int result = real arguments;                                    \
        int error = errno;                                              \
        if (result == 0) {                                              \
            noted;                                                      \
        }                                                               \
        pthread_mutex_unlock(&turn);                                    \
        errno = error;                                                  \
        return result;                                                  \
    }

static void note_size(int fd) {
    struct stat facts;
    fstat(fd, &facts);
    note('t', facts.st_ino, facts.st_size, NULL, 0, NULL, NULL);
}

static void note_sync(int fd) {
    char path[PATH_MAX];
    path_of(fd, path);
    note('s', inode(fd), 0, NULL, 0, path, NULL);
}

CHANGES(ftruncate, (int fd, off_t size), (fd, size), leads_below(fd), note_size(fd))
CHANGES(ftruncate64, (int fd, off64_t size), (fd, size), leads_below(fd), note_size(fd))
CHANGES(posix_fallocate, (int fd, off_t at, off_t size), (fd, at, size), leads_below(fd),
        note_size(fd))
CHANGES(posix_fallocate64, (int fd, off64_t at, off64_t size), (fd, at, size), leads_below(fd),
        note_size(fd))
CHANGES(fsync, (int fd), (fd), leads_below(fd), note_sync(fd))
CHANGES(fdatasync, (int fd), (fd), leads_below(fd), note_sync(fd))

#define BELOW(at, path) (trace >= 0 && is_below(meant(at, path, (char[PATH_MAX]){0})))
#define AT(at, path) meant(at, path, (char[PATH_MAX]){0})
#define NAMED(kind, at, path) note(kind, inode_at(AT(at, path)), 0, NULL, 0, AT(at, path), NULL)
#define TWO_NAMES(kind, a, from, b, to) \
    note(kind, inode_at(AT(b, to)), 0, NULL, 0, AT(a, from), AT(b, to))

CHANGES(rename, (const char *from, const char *to), (from, to),
        BELOW(AT_FDCWD, to) || BELOW(AT_FDCWD, from), TWO_NAMES('r', AT_FDCWD, from, AT_FDCWD, to))
CHANGES(renameat, (int a, const char *from, int b, const char *to), (a, from, b, to),
        BELOW(b, to) || BELOW(a, from), TWO_NAMES('r', a, from, b, to))
CHANGES(link, (const char *from, const char *to), (from, to), BELOW(AT_FDCWD, to),
        TWO_NAMES('l', AT_FDCWD, from, AT_FDCWD, to))
CHANGES(linkat, (int a, const char *from, int b, const char *to, int flags),
        (a, from, b, to, flags), BELOW(b, to), TWO_NAMES('l', a, from, b, to))
CHANGES(unlink, (const char *path), (path), BELOW(AT_FDCWD, path), NAMED('u', AT_FDCWD, path))
CHANGES(unlinkat, (int at, const char *path, int flags), (at, path, flags), BELOW(at, path),
        NAMED('u', at, path))
CHANGES(rmdir, (const char *path), (path), BELOW(AT_FDCWD, path), NAMED('u', AT_FDCWD, path))
CHANGES(mkdir, (const char *path, mode_t mode), (path, mode), BELOW(AT_FDCWD, path),
        NAMED('m', AT_FDCWD, path))
CHANGES(mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), BELOW(at, path),
        NAMED('m', at, path))

static int opened(int (*real)(int, const char *, int, ...), int at, const char *path, int flags,
                  mode_t mode) {
    if (!(flags & (O_CREAT | O_TRUNC)) || !BELOW(at, path)) return real(at, path, flags, mode);
    pthread_mutex_lock(&turn);
    uint64_t before = inode_at(AT(at, path));
    int fd = real(at, path, flags, mode);
    int error = errno;
    if (fd >= 0 && !before) note('c', inode(fd), 0, NULL, 0, AT(at, path), NULL);
    if (fd >= 0 && before && (flags & O_TRUNC)) note_size(fd);
    pthread_mutex_unlock(&turn);
    errno = error;
    return fd;
}

#define OPENS_AT(name)                                                  \
    int name(int at, const char *path, int flags, ...) {                \
        static int (*real)(int, const char *, int, ...);                \
        if (!real) real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        mode_t mode = va_arg(rest, mode_t);                             \
        va_end(rest);                                                   \
        return opened(real, at, path, flags, mode);                     \
    }

OPENS_AT(openat)
OPENS_AT(openat64)

#define OPENS(name, with)                                               \
    int name(const char *path, int flags, ...) {                        \
        static int (*real)(int, const char *, int, ...);                \
        if (!real) real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #with); \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        mode_t mode = va_arg(rest, mode_t);                             \
        va_end(rest);                                                   \
        return opened(real, AT_FDCWD, path, flags, mode);               \
    }

OPENS(open, openat)
OPENS(open64, openat64)

static FILE *opened_as_stream(FILE *(*real)(const char *, const char *), const char *path,
                              const char *how) {
    if (how[0] == 'r' || !BELOW(AT_FDCWD, path)) return real(path, how);
    abort(); /* what such a stream writes would not be seen */
}

FILE *fopen(const char *path, const char *how) {
    REAL(FILE *, fopen, (const char *, const char *))
    return opened_as_stream(real, path, how);
}

FILE *fopen64(const char *path, const char *how) {
    REAL(FILE *, fopen64, (const char *, const char *))
    return opened_as_stream(real, path, how);
}
