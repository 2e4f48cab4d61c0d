/* Waiting: a short spin where it pays, then a futex; or a doorbell, which is a descriptor, for who waits for several things.
 *
 * A bell is how one side of a channel tells the other that there is something to do. Whoever is going to wait *arms* it,
 * looks once more, and sleeps. Whoever has changed something *rings* it, which costs one look where nobody waits.
 * Sleepers are woken before the bell is cleared, and it is only cleared if nobody armed it since: who is killed in between
 * leaves it armed, and the next who rings wakes somebody for nothing.
 */
#ifndef IPCBUS_WAIT_H
#define IPCBUS_WAIT_H

#include <stdbool.h>
#include <stdint.h>

#include "layout.h"

#define NANOSECONDS INT64_C(1000000000)
#define NEVER INT64_MAX

/* What a bell's flags say; above these bits is a count of how often it was armed. */
#define BELL_SLEEPER 1u
#define BELL_DOORBELL 2u
#define BELL_ARMED (BELL_SLEEPER | BELL_DOORBELL)

/* Nanoseconds of the monotonic clock. */
int64_t wait_now(void);

static inline void wait_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

void bell_arm(struct bell *bell, uint32_t how);
void bell_answer(struct bell *bell, int doorbell);

/* Tell whether the other side waits. */
static inline bool bell_is_armed(struct bell *bell)
{
    /* What was changed must be visible before it is looked whether anybody waits for it. */
    atomic_thread_fence(memory_order_seq_cst);
    return atomic_load_explicit(&bell->flags, memory_order_relaxed) & BELL_ARMED;
}

/* Tell the other side, if it waits. */
static inline void bell_ring(struct bell *bell, int doorbell)
{
    if (bell_is_armed(bell))
        bell_answer(bell, doorbell);
}

/* Sleep while the bell's turn is the one given; 0, or the errno: ETIMEDOUT, EINTR. */
int bell_sleep(struct bell *bell, uint32_t turn, int64_t until);

/* Wake everybody who sleeps, in this process and others. */
void bell_wake_all(struct bell *bell);

/* Make a doorbell heard by everybody. Nobody may silence it for another, who would sleep on if this one is killed then: so each
 * process listens with a set of its own, and only has that forget what it has heard. */
void doorbell_ring(int doorbell);
void doorbell_forget(int set);

/* How long spinning pays. */
struct spin {
    int64_t limit;  /* nanoseconds; what the user allows, 0 where there is nobody to spin for */
    int64_t budget; /* what experience says */
    uint32_t skipped;
};

void spin_init(struct spin *spin, int64_t limit);

/* How long to spin now, in nanoseconds. */
int64_t spin_budget(struct spin *spin);

/* Learn from a spin. */
void spin_learn(struct spin *spin, bool paid);

#endif
