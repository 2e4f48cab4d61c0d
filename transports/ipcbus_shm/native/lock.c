#define _GNU_SOURCE
#include "lock.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "wait.h"

#define TRIES 200

int lock_init(pthread_mutex_t *lock)
{
    pthread_mutexattr_t attributes;
    int error = pthread_mutexattr_init(&attributes);
    if (error)
        return error;
    if (!(error = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED)) &&
        !(error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST)))
        error = pthread_mutex_init(lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return error;
}

/* Tell whether this is a lock of ours. The C library aborts the process over some that are not. */
static bool is_ours(const pthread_mutex_t *lock)
{
#ifdef __GLIBC__
    enum { ROBUST = 16, SHARED = 128 }; /* as in its mutex kinds, which are part of its binary interface */
    return *(const volatile int *)&lock->__data.__kind == (ROBUST | SHARED);
#else
    (void)lock;
    return true;
#endif
}

static enum lock_result outcome(pthread_mutex_t *lock, int error)
{
    switch (error) {
    case EOWNERDEAD:
        return pthread_mutex_consistent(lock) ? LOCK_BROKEN : LOCK_TAKEN;
    case 0:
        return LOCK_TAKEN;
    case EBUSY:
    case ETIMEDOUT:
        return LOCK_BUSY;
    default:
        return LOCK_BROKEN;
    }
}

enum lock_result lock_try(pthread_mutex_t *lock)
{
    if (!is_ours(lock))
        return LOCK_BROKEN;
    int error = pthread_mutex_trylock(lock);
    for (int tries = 0; error == EBUSY && tries < TRIES; tries++) {
        wait_pause();
        /* Not at every turn: a try takes the cache line away from the owner. */
        if (tries % 8 == 7)
            error = pthread_mutex_trylock(lock);
    }
    return outcome(lock, error);
}

enum lock_result lock_until(pthread_mutex_t *lock, int64_t until)
{
    if (!is_ours(lock))
        return LOCK_BROKEN;
    struct timespec moment = {.tv_sec = until / NANOSECONDS, .tv_nsec = until % NANOSECONDS};
    return outcome(lock, pthread_mutex_clocklock(lock, CLOCK_MONOTONIC, &moment));
}

void lock_release(pthread_mutex_t *lock)
{
    pthread_mutex_unlock(lock);
}
