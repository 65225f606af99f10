/* Lets reads or writes of files fail, for tests: LD_PRELOAD=failing_io.so with

   FAIL_PATH   part of the path of the files
   FAIL_CALLS  read or write
   FAIL_ERRNO  the number that errno gets
   FAIL_TIMES  how many calls of a process fail; -1 for all */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int failed;

static int fails(int fd, const char *call) {
    const char *path = getenv("FAIL_PATH"), *calls = getenv("FAIL_CALLS");
    char link[64], target[PATH_MAX];
    int kept = errno;
    if (!path || !calls || strcmp(calls, call)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, target, sizeof target - 1);
    errno = kept;
    if (length < 0) return 0;
    target[length] = 0;
    if (!strstr(target, path)) return 0;
    int times = atoi(getenv("FAIL_TIMES") ?: "-1");
    if (times >= 0 && __atomic_fetch_add(&failed, 1, __ATOMIC_SEQ_CST) >= times) return 0;
    errno = atoi(getenv("FAIL_ERRNO") ?: "5");
    return 1;
}

#define FAILING(call, result, name, parameters, ...)                                  \
    result name parameters {                                                          \
        static result(*real) parameters;                                              \
        if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name);              \
        return fails(fd, call) ? -1 : real(__VA_ARGS__);                              \
    }

FAILING("read", ssize_t, read, (int fd, void *buffer, size_t n), fd, buffer, n)
FAILING("read", ssize_t, pread, (int fd, void *buffer, size_t n, off_t at), fd, buffer, n, at)
FAILING("read", ssize_t, pread64, (int fd, void *buffer, size_t n, off64_t at), fd, buffer, n, at)
FAILING("read", ssize_t, preadv, (int fd, const struct iovec *v, int n, off_t at), fd, v, n, at)
FAILING("read", ssize_t, preadv64, (int fd, const struct iovec *v, int n, off64_t at), fd, v, n, at)
FAILING("read", ssize_t, preadv2, (int fd, const struct iovec *v, int n, off_t at, int flags), fd, v, n, at, flags)
FAILING("read", ssize_t, preadv64v2, (int fd, const struct iovec *v, int n, off64_t at, int flags), fd, v, n, at, flags)
FAILING("write", ssize_t, write, (int fd, const void *buffer, size_t n), fd, buffer, n)
FAILING("write", ssize_t, pwrite64, (int fd, const void *buffer, size_t n, off64_t at), fd, buffer, n, at)
FAILING("write", ssize_t, writev, (int fd, const struct iovec *v, int n), fd, v, n)
