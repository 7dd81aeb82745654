/* Preloaded into a child process: its system calls fail, and its wall clock is wrong, when its program says so. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char failing_call[16], failing_file[512];
static int failing_with;
static long failed, clock_offset;

void let_fail(const char *call, const char *file, int error)
{
    snprintf(failing_file, sizeof failing_file, "%s", file); /* a pattern, as a shell has them */
    snprintf(failing_call, sizeof failing_call, "%s", call);
    failing_with = error;
    failed = 0;
}

long times_failed(void) { return failed; }
void shift_clock(long seconds) { clock_offset = seconds; }

static int fails_on(const char *call, const char *path)
{
    if (!failing_with || strcmp(call, failing_call) || fnmatch(failing_file, path, 0))
        return 0;
    failed++;
    errno = failing_with;
    return 1;
}

static int fails(const char *call, int fd)
{
    char link[64], path[4096];
    ssize_t length;
    int before = errno;

    if (!failing_with || strcmp(call, failing_call))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0)
        return 0;
    path[length] = 0;
    return fails_on(call, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *from, size_t size)
{
    return fails("write", fd) ? -1 : REAL(write)(fd, from, size);
}

ssize_t pwrite(int fd, const void *from, size_t size, off_t at)
{
    return fails("write", fd) ? -1 : REAL(pwrite)(fd, from, size, at);
}

ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at)
{
    return fails("write", fd) ? -1 : REAL(pwrite64)(fd, from, size, at);
}

ssize_t pwritev(int fd, const struct iovec *from, int count, off_t at)
{
    return fails("write", fd) ? -1 : REAL(pwritev)(fd, from, count, at);
}

ssize_t pwritev64(int fd, const struct iovec *from, int count, off64_t at)
{
    return fails("write", fd) ? -1 : REAL(pwritev64)(fd, from, count, at);
}

ssize_t pwritev2(int fd, const struct iovec *from, int count, off_t at, int flags)
{
    return fails("write", fd) ? -1 : REAL(pwritev2)(fd, from, count, at, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec *from, int count, off64_t at, int flags)
{
    return fails("write", fd) ? -1 : REAL(pwritev64v2)(fd, from, count, at, flags);
}

int fsync(int fd) { return fails("sync", fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails("sync", fd) ? -1 : REAL(fdatasync)(fd); }

int close(int fd)
{
    int wrong = fails("close", fd), error = errno, result = REAL(close)(fd);

    if (wrong) /* closed all the same, as systems do it */
        errno = error;
    return wrong ? -1 : result;
}

static int opens_to_write(const char *path, int flags)
{
    return (flags & (O_WRONLY | O_RDWR | O_CREAT)) && fails_on("open", path);
}

#define OPEN(name)                                                   \
    int name(const char *path, int flags, ...)                       \
    {                                                                \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        mode_t mode = va_arg(rest, mode_t);                          \
        va_end(rest);                                                \
        return opens_to_write(path, flags) ? -1 : REAL(name)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                 \
    int name(int folder, const char *path, int flags, ...)           \
    {                                                                \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        mode_t mode = va_arg(rest, mode_t);                          \
        va_end(rest);                                                \
        return opens_to_write(path, flags) ? -1 : REAL(name)(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = REAL(clock_gettime)(clock, now);

    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        now->tv_sec += clock_offset;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int result = REAL(gettimeofday)(now, zone);

    now->tv_sec += clock_offset;
    return result;
}

time_t time(time_t *kept)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (kept)
        *kept = now.tv_sec;
    return now.tv_sec;
}
