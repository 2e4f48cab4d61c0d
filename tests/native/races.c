/* What happens between two looks of one who sweeps up behind the dead: others die, and take over their slots.
 *
 * The kernel is asked whether an owner is dead in the middle of arena_sweep; run.py has the linker lead that call here, so
 * that each race has its one interleaving.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ends.h"

#define LARGE 20000u

int __real_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...);

/* What others do before and after the next question. */
static struct {
    void (*before)(void), (*after)(void);
} others;

static void let(void (**what)(void))
{
    void (*now)(void) = *what;
    *what = NULL;
    if (now)
        now();
}

int __wrap_fcntl(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (command == F_OFD_GETLK)
        let(&others.before);
    int done = __real_fcntl(fd, command, argument);
    if (command == F_OFD_GETLK)
        let(&others.after);
    return done;
}

/* ------------------------------------------------------------------ three who share a channel */

enum { FREE = 1, QUEUED = 4, HELD = 5 }; /* as in arena.c */

static struct channel channel;
static struct owner *doomed, *heir;
static struct held held;

static unsigned kind_of(unsigned index) { return (unsigned)(atomic_load(&channel.ring->extents[index].state) >> 56); }

static void set_up(void)
{
    channel_make(&channel, 65536, 10);
    channel.owner = owner_claim(channel.arena); /* the lower slot, which is not claimed again */
    doomed = owner_claim(channel.arena);
    CHECK(channel.owner && doomed, "no slots");
}

static void tear_down(void)
{
    owner_drop(heir);
    heir = NULL;
    channel_close(&channel);
}

static void send_large(void)
{
    static const unsigned char data[LARGE];
    CHECK(channel_send(&channel, data, sizeof data, 1, wait_now() + NANOSECONDS) == DONE, "nothing was sent");
}

/* Begin to receive: the extent is an owner's, and the message still in the ring. */
static struct record hold(struct owner *owner, struct held *what)
{
    struct record record;
    uint64_t index;
    CHECK(ring_peek(channel.ring, &record) == RING_OK, "nothing to receive");
    ring_read(channel.ring, &record, 0, &index, sizeof index);
    CHECK(arena_hold(channel.arena, owner, (uint32_t)index, record.number, what) == ARENA_OK, "not held");
    return record;
}

static void claim_and_take(void)
{
    heir = owner_claim(channel.arena);
    CHECK(heir, "no slot");
    struct record record = hold(heir, &held);
    ring_advance(channel.ring, &record);
}

/* A receiver died holding one message, and about to take the next. While somebody sweeps, the slot gets a new owner, which
 * takes that next one: it must not be freed under its hands. */
static void a_slot_that_is_claimed_during_a_sweep(void)
{
    set_up();
    send_large();
    send_large();
    struct record record = hold(doomed, &held);
    ring_advance(channel.ring, &record);
    hold(doomed, &held);
    owner_drop(doomed);
    others.after = claim_and_take;
    arena_sweep(channel.arena, channel.owner);
    CHECK(heir && kind_of(0) == FREE && kind_of(1) == HELD, "states %u %u", kind_of(0), kind_of(1));
    arena_release(channel.arena, &held);
    tear_down();
}

/* The same with the message that it was about to take alone: the state is the same word before and afterwards. */
static void a_message_that_is_taken_during_a_sweep(void)
{
    set_up();
    send_large();
    hold(doomed, &held);
    owner_drop(doomed);
    others.after = claim_and_take;
    arena_sweep(channel.arena, channel.owner);
    if (!heir) /* nobody was asked: the message is in the ring, which is enough */
        claim_and_take();
    others.after = NULL;
    CHECK(kind_of(0) == HELD, "state %u", kind_of(0));
    arena_release(channel.arena, &held);
    CHECK(kind_of(0) == FREE, "state %u", kind_of(0));
    tear_down();
}

static void publish_and_die(void)
{
    const uint64_t record[] = {held.index, LARGE, LARGE};
    const struct part part = {record, sizeof record};
    ring_put(channel.ring, RECORD_EXTENT, &part, 1, 1, sizeof record);
    owner_drop(doomed);
    doomed = NULL;
}

/* A sender has marked its extent. It publishes the message and dies when the sweeper has looked for it already. */
static void a_message_that_is_published_during_a_sweep(void)
{
    set_up();
    CHECK(arena_take(channel.arena, doomed, LARGE, &held) == ARENA_OK && arena_grow(channel.arena, &held) == ARENA_OK, "no extent");
    arena_queue(channel.arena, &held, ring_next_number(channel.ring));
    others.before = publish_and_die;
    arena_sweep(channel.arena, channel.owner);
    CHECK(!doomed && kind_of(0) == QUEUED, "state %u", kind_of(0));
    hold(channel.owner, &held);
    tear_down();
}

/* What is found to have room is what is taken. */
static void what_died_unpublished_does_not_wait(void)
{
    set_up();
    CHECK(arena_take(channel.arena, doomed, LARGE, &held) == ARENA_OK && arena_grow(channel.arena, &held) == ARENA_OK, "no extent");
    arena_queue(channel.arena, &held, ring_next_number(channel.ring));
    owner_drop(doomed);
    CHECK(arena_has_room(channel.arena, LARGE, LARGE), "a message that is in no ring waits");
    tear_down();
}

int main(void)
{
    a_slot_that_is_claimed_during_a_sweep();
    a_message_that_is_taken_during_a_sweep();
    a_message_that_is_published_during_a_sweep();
    what_died_unpublished_does_not_wait();
    puts("4 races");
    return 0;
}
