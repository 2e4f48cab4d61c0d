#define _GNU_SOURCE
#include "wait.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "fault.h"

int64_t wait_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NANOSECONDS + now.tv_nsec;
}

void bell_arm(struct bell *bell, uint32_t how)
{
    uint32_t flags = atomic_load_explicit(&bell->flags, memory_order_relaxed);
    uint32_t armed;
    do
        armed = ((flags & ~BELL_ARMED) + BELL_ARMED + 1) | (flags & BELL_ARMED) | how;
    while (!atomic_compare_exchange_weak(&bell->flags, &flags, armed));
    atomic_thread_fence(memory_order_seq_cst); /* armed first, looked again afterwards */
    FAULT(WAIT_ARMED);
}

void bell_answer(struct bell *bell, int doorbell)
{
    uint32_t flags = atomic_load(&bell->flags);
    if (flags & BELL_SLEEPER)
        bell_wake_all(bell);
    if (flags & BELL_DOORBELL)
        doorbell_ring(doorbell);
    FAULT(BELL_ANSWERED);
    atomic_compare_exchange_strong(&bell->flags, &flags, flags & ~BELL_ARMED);
}

int bell_sleep(struct bell *bell, uint32_t turn, int64_t until)
{
    struct timespec moment = {.tv_sec = until / NANOSECONDS, .tv_nsec = until % NANOSECONDS};
    /* The bitset form takes a moment instead of a duration, so an interruption does not lengthen the wait. */
    long result = syscall(SYS_futex, &bell->turn, FUTEX_WAIT_BITSET, turn, until == NEVER ? NULL : &moment, NULL,
                          FUTEX_BITSET_MATCH_ANY);
    return result == 0 || errno == EAGAIN ? 0 : errno;
}

void bell_wake_all(struct bell *bell)
{
    atomic_fetch_add(&bell->turn, 1);
    syscall(SYS_futex, &bell->turn, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void doorbell_forget(int set)
{
    struct epoll_event event;
    int done = epoll_wait(set, &event, 1, 0);
    (void)done; /* it had heard nothing */
}

void doorbell_ring(int doorbell)
{
    const uint64_t one = 1;
    ssize_t done = write(doorbell, &one, sizeof one);
    (void)done; /* it rings already, and has been for 2^64 times */
}

/* Below this a spin is not worth its clock readings. */
#define LEAST INT64_C(500)
/* Where spinning did not pay, it is tried again once in so many waits. */
#define AGAIN 32

void spin_init(struct spin *spin, int64_t limit)
{
    cpu_set_t mine;
    /* Alone on one processor, whoever is waited for runs only once this stops. */
    if (sched_getaffinity(0, sizeof mine, &mine) == 0 && CPU_COUNT(&mine) < 2)
        limit = 0;
    spin->limit = spin->budget = limit;
    spin->skipped = 0;
}

int64_t spin_budget(struct spin *spin)
{
    if (spin->budget >= LEAST)
        return spin->budget;
    if (spin->limit < LEAST || ++spin->skipped < AGAIN)
        return 0;
    spin->skipped = 0;
    return spin->limit;
}

void spin_learn(struct spin *spin, bool paid)
{
    if (paid)
        spin->budget = spin->limit;
    else
        spin->budget /= 2;
}
