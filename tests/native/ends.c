#define _GNU_SOURCE
#include "ends.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* Arrays want to be aligned; as in native.h, which needs Python. */
static uint64_t aligned(uint64_t offset) { return (offset + LINE - 1) / LINE * LINE; }

struct where {
    uint64_t index, bytes;
};

uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

#ifdef __SANITIZE_THREAD__
/* ThreadSanitizer does not know this way to take a lock; it knows the one that takes the time of day. */
int pthread_mutex_clocklock(pthread_mutex_t *lock, clockid_t clock, const struct timespec *moment)
{
    struct timespec then;
    (void)clock; /* lock.c has only the one that wait_now reads */
    clock_gettime(CLOCK_REALTIME, &then);
    int64_t left = moment->tv_sec * NANOSECONDS + moment->tv_nsec - wait_now();
    int64_t end = then.tv_sec * NANOSECONDS + then.tv_nsec + (left > 0 ? left : 0);
    then = (struct timespec){.tv_sec = end / NANOSECONDS, .tv_nsec = end % NANOSECONDS};
    return pthread_mutex_timedlock(lock, &then);
}
#endif

/* ------------------------------------------------------------------ the memory */

static void attach(struct channel *channel, uint64_t ring_bytes, bool fresh)
{
    size_t size = channel->mapped = ring_file_size(ring_bytes, channel->capacity);
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, channel->fd, 0);
    CHECK(memory != MAP_FAILED, "%s", strerror(errno));
    if (fresh)
        CHECK(ring_format(memory, ring_bytes, channel->capacity) == 0, "no locks");
    channel->owner = NULL;
    channel->ring = malloc(sizeof *channel->ring);
    channel->arena = malloc(sizeof *channel->arena);
    CHECK(ring_attach(channel->ring, memory, ring_bytes, channel->capacity), "not a segment");
    arena_attach(channel->arena, channel->ring, channel->fd, size);
}

void channel_make(struct channel *channel, uint64_t ring_bytes, uint64_t capacity)
{
    channel->capacity = capacity;
    channel->fd = memfd_create("ipcbus-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(channel->fd >= 0 && fallocate(channel->fd, 0, 0, (off_t)ring_file_size(ring_bytes, capacity)) == 0, "%s", strerror(errno));
    CHECK(fcntl(channel->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_SEAL) == 0, "%s", strerror(errno));
    channel->senders_bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    channel->receivers_bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    attach(channel, ring_bytes, true);
}

void channel_map(struct channel *channel, const struct channel *other)
{
    *channel = *other;
    attach(channel, (uint64_t)other->ring->units * UNIT, false);
}

void channel_unmap(struct channel *channel)
{
    owner_drop(channel->owner);
    arena_detach(channel->arena);
    munmap(channel->ring->header, channel->mapped);
    free(channel->ring);
    free(channel->arena);
}

void channel_close(struct channel *channel)
{
    channel_unmap(channel);
    close(channel->fd);
    close(channel->senders_bell);
    close(channel->receivers_bell);
}

/* ------------------------------------------------------------------ sending */

/* Put an entry into the ring; `held` is its extent, if it has one. */
static enum result put(struct channel *channel, enum record_kind kind, const struct part *parts, unsigned count, unsigned said,
                       size_t size, struct held *held, int64_t until)
{
    struct header *header = channel->ring->header;
    for (;;) {
        uint32_t turn = atomic_load(&header->to_senders.turn);
        enum lock_result lock = lock_try(&header->send_lock);
        if (lock == LOCK_BUSY)
            lock = lock_until(&header->send_lock, until);
        if (lock != LOCK_TAKEN)
            return lock == LOCK_BUSY ? FULL_OR_EMPTY : BROKEN;
        enum ring_result room = ring_room(channel->ring, ring_units(size));
        if (room == RING_OK) {
            if (held)
                arena_queue(channel->arena, held, ring_next_number(channel->ring));
            ring_put(channel->ring, kind, parts, count, (uint16_t)said, size);
        }
        lock_release(&header->send_lock);
        if (room == RING_OK) {
            bell_ring(&header->to_receivers, channel->receivers_bell);
            return DONE;
        }
        if (room == RING_BROKEN)
            return BROKEN;
        bell_arm(&header->to_senders, BELL_SLEEPER);
        if (!ring_has_room(channel->ring, ring_units(size)) && bell_sleep(&header->to_senders, turn, until) == ETIMEDOUT)
            return FULL_OR_EMPTY;
        if (wait_now() >= until)
            return FULL_OR_EMPTY;
    }
}

static enum result take_extent(struct channel *channel, uint64_t need, struct held *held, int64_t until)
{
    struct header *header = channel->ring->header;
    if (!channel->owner && !(channel->owner = owner_claim(channel->arena)))
        return REFUSED;
    for (;;) {
        uint32_t turn = atomic_load(&header->to_senders.turn);
        enum lock_result lock = lock_until(&header->arena_lock, until);
        if (lock != LOCK_TAKEN)
            return lock == LOCK_BUSY ? FULL_OR_EMPTY : BROKEN;
        enum arena_result result = arena_take(channel->arena, channel->owner, need, held);
        lock_release(&header->arena_lock);
        if (result == ARENA_OK)
            return arena_grow(channel->arena, held) == ARENA_OK ? DONE : REFUSED;
        if (result == ARENA_DAMAGED)
            return BROKEN;
        bell_arm(&header->to_senders, BELL_SLEEPER);
        if (!arena_has_room(channel->arena, need, MOST_WAITING) && bell_sleep(&header->to_senders, turn, until) == ETIMEDOUT)
            return FULL_OR_EMPTY;
        if (wait_now() >= until)
            return FULL_OR_EMPTY;
    }
}

static size_t part_size(size_t size, unsigned parts, unsigned at) { return at + 1 < parts ? size / parts : size - size / parts * at; }

enum result channel_send(struct channel *channel, const unsigned char *data, size_t size, unsigned parts, int64_t until)
{
    uint32_t table[MOST_PARTS];
    uint64_t sizes[MOST_PARTS], need = 0;
    for (unsigned at = 0; at < parts; at++) {
        sizes[at] = table[at] = (uint32_t)part_size(size, parts, at);
        need = aligned(need) + sizes[at];
    }
    if (size + sizeof table <= (size_t)channel->ring->units * UNIT / 4) {
        size_t head = parts > 1 ? parts * sizeof table[0] : 0;
        const struct part pieces[] = {{table, head}, {data, size}};
        return put(channel, RECORD_INLINE, pieces, 2, parts, head + size, NULL, until);
    }
    struct held held;
    enum result result = take_extent(channel, need, &held, until);
    if (result != DONE)
        return result;
    unsigned char *memory = arena_window(channel->arena, &held);
    if (!memory) {
        arena_give_back(channel->arena, &held);
        return REFUSED;
    }
    uint64_t offset = 0;
    for (unsigned at = 0; at < parts; at++) {
        memcpy(memory + offset, data, sizes[at]);
        data += sizes[at];
        offset = aligned(offset + sizes[at]);
    }
    arena_window_done(channel->arena, memory, held.size);
    struct where where = {held.index, size};
    const struct part pieces[] = {{&where, sizeof where}, {sizes, parts * sizeof sizes[0]}};
    result = put(channel, RECORD_EXTENT, pieces, 2, parts, sizeof where + parts * sizeof sizes[0], &held, until);
    if (result != DONE)
        arena_give_back(channel->arena, &held);
    return result;
}

/* ------------------------------------------------------------------ receiving */

static void taken(struct channel *channel, const struct record *record)
{
    ring_advance(channel->ring, record);
    lock_release(&channel->ring->header->recv_lock);
    bell_ring(&channel->ring->header->to_senders, channel->senders_bell);
}

static enum result damaged(struct channel *channel)
{
    lock_release(&channel->ring->header->recv_lock);
    return BROKEN;
}

static enum result take_inline(struct channel *channel, const struct record *record, unsigned char **data, size_t *size)
{
    uint32_t table[MOST_PARTS] = {record->size};
    size_t head = record->parts > 1 ? record->parts * sizeof table[0] : 0;
    if (head > record->size)
        return damaged(channel);
    if (head)
        ring_read(channel->ring, record, 0, table, head);
    *data = malloc(record->size + 1);
    *size = 0;
    for (unsigned at = 0; at < record->parts; at++) {
        if (table[at] > record->size - head - *size) {
            free(*data);
            return damaged(channel);
        }
        ring_read(channel->ring, record, head + *size, *data + *size, table[at]);
        *size += table[at];
    }
    if (head + *size != record->size) {
        free(*data);
        return damaged(channel);
    }
    taken(channel, record);
    return DONE;
}

static enum result take_large(struct channel *channel, const struct record *record, unsigned char **data, size_t *size)
{
    struct where where;
    struct held held;
    uint64_t sizes[MOST_PARTS], bytes = 0, needed = 0;
    if (record->size != sizeof where + record->parts * sizeof sizes[0])
        return damaged(channel);
    ring_read(channel->ring, record, 0, &where, sizeof where);
    ring_read(channel->ring, record, sizeof where, sizes, record->parts * sizeof sizes[0]);
    for (unsigned at = 0; at < record->parts; at++) {
        if (sizes[at] > MOST_MESSAGE)
            return damaged(channel);
        bytes += sizes[at];
        needed = aligned(needed) + sizes[at];
    }
    if (bytes != where.bytes || bytes > MOST_MESSAGE || where.index >= EXTENTS)
        return damaged(channel);
    if (!channel->owner && !(channel->owner = owner_claim(channel->arena))) {
        lock_release(&channel->ring->header->recv_lock);
        return REFUSED;
    }
    if (arena_hold(channel->arena, channel->owner, (uint32_t)where.index, record->number, &held) != ARENA_OK || needed > held.size)
        return damaged(channel);
    unsigned char *memory = mmap(NULL, held.size, PROT_READ | PROT_WRITE, MAP_PRIVATE, channel->fd, (off_t)held.offset);
    if (memory == MAP_FAILED) {
        lock_release(&channel->ring->header->recv_lock);
        return REFUSED;
    }
    taken(channel, record);
    *size = bytes;
    *data = malloc(bytes + 1);
    uint64_t offset = 0, written = 0;
    for (unsigned at = 0; at < record->parts; at++) {
        memcpy(*data + written, memory + offset, sizes[at]);
        written += sizes[at];
        offset = aligned(offset + sizes[at]);
    }
    munmap(memory, held.size);
    arena_release(channel->arena, &held);
    bell_ring(&channel->ring->header->to_senders, channel->senders_bell);
    return DONE;
}

enum result channel_recv(struct channel *channel, unsigned char **data, size_t *size, unsigned *parts, int64_t until)
{
    struct header *header = channel->ring->header;
    for (;;) {
        uint32_t turn = atomic_load(&header->to_receivers.turn);
        enum lock_result lock = lock_try(&header->recv_lock);
        if (lock == LOCK_BUSY)
            lock = lock_until(&header->recv_lock, until);
        if (lock != LOCK_TAKEN)
            return lock == LOCK_BUSY ? FULL_OR_EMPTY : BROKEN;
        struct record record;
        switch (ring_peek(channel->ring, &record)) {
        case RING_OK:
            *parts = record.parts;
            return record.kind == RECORD_INLINE ? take_inline(channel, &record, data, size) : take_large(channel, &record, data, size);
        case RING_EMPTY:
            lock_release(&header->recv_lock);
            break;
        default:
            return damaged(channel);
        }
        bell_arm(&header->to_receivers, BELL_SLEEPER);
        if (ring_is_empty(channel->ring) && bell_sleep(&header->to_receivers, turn, until) == ETIMEDOUT)
            return FULL_OR_EMPTY;
        if (wait_now() >= until)
            return FULL_OR_EMPTY;
    }
}

enum result channel_drop(struct channel *channel)
{
    struct header *header = channel->ring->header;
    enum lock_result lock = lock_until(&header->recv_lock, wait_now() + NANOSECONDS / 100);
    if (lock != LOCK_TAKEN)
        return lock == LOCK_BUSY ? FULL_OR_EMPTY : BROKEN;
    struct record record;
    struct where where = {EXTENTS, 0};
    enum ring_result found = ring_peek(channel->ring, &record);
    if (found != RING_OK) {
        lock_release(&header->recv_lock);
        return found == RING_EMPTY ? FULL_OR_EMPTY : BROKEN;
    }
    if (record.kind == RECORD_EXTENT && record.size >= sizeof where)
        ring_read(channel->ring, &record, 0, &where, sizeof where);
    ring_advance(channel->ring, &record);
    if (record.kind == RECORD_EXTENT && where.index < EXTENTS)
        arena_discard(channel->arena, (uint32_t)where.index, record.number);
    lock_release(&header->recv_lock);
    bell_ring(&header->to_senders, channel->senders_bell);
    return DONE;
}
