/* LD_PRELOAD for the fault tests: the wall clock of one process runs CHAOS_CLOCK seconds ahead (or behind).
 * CHAOS_CLOCK names an 8-byte file that holds the offset; the monotonic clock stays as it is. libfaketime cannot do this
 * here: Redis does not start under it (jemalloc), and Python 3.11's sleep fails when the clock is changed. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const long long *offset;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("CHAOS_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *page = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED) offset = page;
}

static int wall(struct timespec *now) {
    int answer = (int)syscall(SYS_clock_gettime, CLOCK_REALTIME, now);
    if (!answer && offset) now->tv_sec += *offset;
    return answer;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) return wall(now);
    return (int)syscall(SYS_clock_gettime, id, now);
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec t;
    (void)zone;
    if (wall(&t)) return -1;
    now->tv_sec = t.tv_sec;
    now->tv_usec = t.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec t;
    if (wall(&t)) return -1;
    if (now) *now = t.tv_sec;
    return t.tv_sec;
}
