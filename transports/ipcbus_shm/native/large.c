/* Sending what is too large for the ring: an extent is filled first, and then the ring says where it is. */
#include "sender.h"

#include <errno.h>
#include <string.h>

#include "fault.h"
#include "lock.h"

static bool raise_memory(const char *what, size_t size)
{
    int code = errno;
    const char *remedy = code == EMFILE || code == ENFILE ? "; close some descriptors or raise 'ulimit -n', and try again"
                         : code == EUSERS ? "; a thousand processes send or receive large messages here, and no more can"
                                          : "";
    PyErr_Format(ChannelBroken, "%s for a message of %zu bytes: %s; nothing was sent%s", what, size, strerror(code), remedy);
    return false;
}

/* Take the arena's lock, however long that takes; false with an exception set. */
static bool lock_arena(struct side *side, int64_t until)
{
    struct header *header = side->segment->ring.header;
    enum lock_result lock = lock_try(&header->arena_lock);
    for (int64_t last = side_patience(until); lock == LOCK_BUSY;) {
        int64_t slice = wait_now() + NANOSECONDS / 20;
        Py_BEGIN_ALLOW_THREADS
        lock = lock_until(&header->arena_lock, slice < last ? slice : last);
        Py_END_ALLOW_THREADS
        if (lock != LOCK_BUSY)
            break;
        if (PyErr_CheckSignals() < 0)
            return false;
        if (side->closed) {
            raise_closed();
            return false;
        }
        if (wait_now() >= last) {
            PyErr_SetString(ChannelFull, "another sender has been at it all the time; it was stopped, or loses the processor");
            return false;
        }
    }
    if (lock == LOCK_BROKEN)
        raise_damaged();
    return lock == LOCK_TAKEN;
}

static bool claim(struct side *side, size_t size)
{
    return side->owner || (side->owner = owner_claim(&side->segment->arena)) || raise_memory("no claim on memory", size);
}

/* Wait for room in the arena, unless there is some once what the dead had is found; false with an exception set. */
static bool wait_for_extent(Sender *self, size_t need, size_t size, int64_t until)
{
    Segment *segment = self->side.segment;
    if (!claim(&self->side, size) || !lock_arena(&self->side, until))
        return false;
    bool found = arena_sweep(&segment->arena, self->side.owner);
    lock_release(&segment->ring.header->arena_lock);
    return found || sender_wait(self, need, until);
}

/* Take over an extent, however long that takes; false with an exception set. */
static bool take_extent(Sender *self, size_t need, size_t size, int64_t until, struct held *held)
{
    struct side *side = &self->side;
    Segment *segment = side->segment;
    if (!claim(side, size))
        return false;
    for (;;) {
        if (!lock_arena(side, until))
            return false;
        enum arena_result result = arena_take(&segment->arena, side->owner, need, held);
        lock_release(&segment->ring.header->arena_lock);
        if (result == ARENA_OK) {
            int code;
            Py_BEGIN_ALLOW_THREADS
            result = arena_grow(&segment->arena, held);
            code = errno;
            Py_END_ALLOW_THREADS
            if (result == ARENA_OK)
                return true;
            errno = code;
            if (code != EINTR)
                return raise_memory("no memory", size);
            if (PyErr_CheckSignals() < 0)
                return false;
            continue;
        }
        if (result == ARENA_DAMAGED) {
            raise_damaged();
            return false;
        }
        if (!sender_wait(self, need, until))
            return false;
        if (side->closed || ring_is_shut(&segment->ring)) {
            PyErr_SetString(ChannelClosed, "the shm: channel was closed or shut down");
            return false;
        }
    }
}

/* Nanoseconds that a sender waits for a used extent before it takes a fresh one. */
#define MOMENT (NANOSECONDS / 1000)

/* Let receivers catch up for a moment, if that is likely to pay; false with an exception set. */
static bool give_a_moment(Sender *self, size_t wanted, int64_t until)
{
    struct wish wish = {self, wanted, FEW_WAITING};
    if (!until || sender_has_room(&wish))
        return true;
    int64_t last = wait_now() + MOMENT < until ? wait_now() + MOMENT : until;
    if (side_spin(&self->side, sender_has_room, &wish, last))
        return true;
    Segment *segment = self->side.segment;
    struct bell *bell = &segment->ring.header->to_senders;
    Py_BEGIN_ALLOW_THREADS
    uint32_t turn;
    do {
        turn = atomic_load(&bell->turn);
        bell_arm(bell, BELL_SLEEPER);
    } while (!sender_has_room(&wish) && bell_sleep(bell, turn, last) == 0);
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals() == 0;
}

bool sender_put_large(Sender *self, struct message *message, int64_t until)
{
    Segment *segment = self->side.segment;
    struct held held;
    uint64_t sizes[MOST_PARTS];
    size_t need = 0;
    for (unsigned at = 0; at < message->count; at++) {
        sizes[at] = message->parts[at].size;
        need = extent_align(need) + sizes[at];
    }
    /* What is waited for has to be what is taken, or the one finds room where the other has none, and they go round in
     * circles; and it says by its size that the ring is no place for it. */
    if (need <= (size_t)self->most_inline)
        need = (size_t)self->most_inline + 1;
    /* Looked at first: a copy that finds no room would be for nothing. */
    if (!give_a_moment(self, need, until))
        return false;
    struct wish wish = {self, need, MOST_WAITING};
    while (!sender_has_room(&wish))
        if (!wait_for_extent(self, need, message->size, until))
            return false;
    if (self->side.closed) {
        raise_closed();
        return false;
    }
    if (!take_extent(self, need, message->size, until, &held))
        return false;
    unsigned char *memory = arena_window(&segment->arena, &held);
    if (!memory) {
        raise_memory("no address space", message->size);
        arena_give_back(&segment->arena, &held);
        return false;
    }
    Py_BEGIN_ALLOW_THREADS
    uint64_t offset = 0;
    for (unsigned at = 0; at < message->count; at++) {
        memcpy(memory + offset, message->parts[at].data, message->parts[at].size);
        offset = extent_align(offset + sizes[at]);
    }
    Py_END_ALLOW_THREADS
    FAULT(EXTENT_FILLED);
    arena_window_done(&segment->arena, memory, held.size);
    struct extent_record where = {held.index, message->size};
    struct entry entry = {
        .kind = RECORD_EXTENT,
        .parts = {{&where, sizeof where}, {sizes, message->count * sizeof sizes[0]}},
        .count = 2,
        .said = (uint16_t)message->count,
        .size = sizeof where + message->count * sizeof sizes[0],
        .held = &held,
    };
    if (sender_put(self, &entry, need, until))
        return true;
    arena_give_back(&segment->arena, &held);
    return false;
}
