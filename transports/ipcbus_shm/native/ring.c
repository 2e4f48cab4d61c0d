#include "ring.h"

#include <string.h>

#include "fault.h"
#include "lock.h"

/* The halves of a cursor. */
static inline uint32_t number_of(uint64_t value) { return (uint32_t)(value >> 32); }
static inline uint32_t unit_of(uint64_t value) { return (uint32_t)value; }

static inline uint64_t advanced(uint64_t value, uint32_t units)
{
    return (uint64_t)(number_of(value) + 1) << 32 | (uint32_t)(unit_of(value) + units);
}

/* Tell whether two cursors can be the ends of one ring: hostile ones cannot be used as a distance. */
static inline bool plausible(const struct ring *ring, uint64_t tail, uint64_t head)
{
    uint32_t used = unit_of(tail) - unit_of(head), waiting = number_of(tail) - number_of(head);
    return used <= ring->units && waiting <= ring->capacity && (used == 0) == (waiting == 0) && waiting <= used;
}

size_t ring_file_size(uint64_t ring_bytes, uint64_t capacity)
{
    if (ring_bytes < PAGE || ring_bytes > MOST_RING_BYTES || (ring_bytes & (ring_bytes - 1)))
        return 0;
    if (capacity < 1 || capacity > INT32_MAX)
        return 0;
    return RING_AT + ring_bytes;
}

int ring_format(void *memory, uint64_t ring_bytes, uint64_t capacity)
{
    struct header *header = memory;
    header->magic = LAYOUT_MAGIC;
    header->ring_bytes = ring_bytes;
    header->capacity = capacity;
    atomic_store(&header->arena_end, RING_AT + ring_bytes);
    int error = lock_init(&header->send_lock);
    if (!error)
        error = lock_init(&header->recv_lock);
    if (!error)
        error = lock_init(&header->arena_lock);
    return error;
}

bool ring_attach(struct ring *ring, void *memory, uint64_t ring_bytes, uint64_t capacity)
{
    struct header *header = memory;
    if (header->magic != LAYOUT_MAGIC || header->ring_bytes != ring_bytes || header->capacity != capacity)
        return false;
    ring->header = header;
    ring->extents = (struct extent *)((unsigned char *)memory + EXTENTS_AT);
    ring->data = (unsigned char *)memory + RING_AT;
    ring->units = (uint32_t)(ring_bytes / UNIT);
    ring->capacity = (uint32_t)capacity;
    return true;
}

uint32_t ring_units(size_t size)
{
    return 1 + (uint32_t)((size + UNIT - 1) / UNIT);
}

/* ------------------------------------------------------------------ the ring as memory */

/* Positions count on modulo 2^32, of which the number of units is a divisor. */
static unsigned char *address(const struct ring *ring, uint32_t unit)
{
    return ring->data + (size_t)(unit & (ring->units - 1)) * UNIT;
}

/* Copy into the ring, from a byte that lies `offset` behind a unit, around the corner. */
static void write_bytes(const struct ring *ring, uint32_t unit, size_t offset, const void *from, size_t size)
{
    size_t length = (size_t)ring->units * UNIT;
    size_t at = ((size_t)(unit & (ring->units - 1)) * UNIT + offset) & (length - 1);
    size_t first = size < length - at ? size : length - at;
    memcpy(ring->data + at, from, first);
    if (first < size)
        memcpy(ring->data, (const unsigned char *)from + first, size - first);
}

void ring_read(const struct ring *ring, const struct record *record, size_t offset, void *into, size_t size)
{
    size_t length = (size_t)ring->units * UNIT;
    size_t at = ((size_t)(record->at & (ring->units - 1)) * UNIT + offset) & (length - 1);
    size_t first = size < length - at ? size : length - at;
    memcpy(into, ring->data + at, first);
    if (first < size)
        memcpy((unsigned char *)into + first, ring->data, size - first);
}

/* ------------------------------------------------------------------ senders */

static bool fits(const struct ring *ring, uint64_t tail, uint64_t head, uint32_t units)
{
    return number_of(tail) - number_of(head) < ring->capacity && ring->units - (unit_of(tail) - unit_of(head)) >= units;
}

enum ring_result ring_room(struct ring *ring, uint32_t units)
{
    struct header *header = ring->header;
    uint64_t tail = atomic_load_explicit(&header->tail, memory_order_relaxed);
    uint64_t head = atomic_load_explicit(&header->head_seen, memory_order_relaxed);
    if (plausible(ring, tail, head) && fits(ring, tail, head, units))
        return RING_OK;
    /* The other side's line is only read when it has to be: taking it away from a receiver costs both. */
    head = atomic_load_explicit(&header->head, memory_order_acquire);
    if (!plausible(ring, tail, head))
        return RING_BROKEN;
    atomic_store_explicit(&header->head_seen, head, memory_order_relaxed);
    return fits(ring, tail, head, units) ? RING_OK : RING_FULL;
}

bool ring_has_room(struct ring *ring, uint32_t units)
{
    /* The tail first: what is received between the two looks makes room, and what is sent would seem to overfill the ring. */
    uint64_t tail = atomic_load_explicit(&ring->header->tail, memory_order_acquire);
    uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_acquire);
    return !plausible(ring, tail, head) || fits(ring, tail, head, units);
}

bool ring_has_plenty(struct ring *ring, uint32_t units)
{
    uint64_t tail = atomic_load_explicit(&ring->header->tail, memory_order_acquire);
    uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_acquire);
    uint32_t waiting = number_of(tail) - number_of(head) + ring->capacity / 8;
    return !plausible(ring, tail, head) ||
           (waiting < ring->capacity && fits(ring, tail, head, units > ring->units / 8 ? units : ring->units / 8));
}

uint32_t ring_next_number(struct ring *ring)
{
    return number_of(atomic_load_explicit(&ring->header->tail, memory_order_relaxed));
}

void ring_put(struct ring *ring, enum record_kind kind, const struct part *parts, unsigned count, uint16_t said, size_t size)
{
    struct header *header = ring->header;
    uint64_t tail = atomic_load_explicit(&header->tail, memory_order_relaxed);
    uint64_t head = (uint64_t)size | (uint64_t)said << 32 | (uint64_t)kind << 48;
    memcpy(address(ring, unit_of(tail)), &head, UNIT);
    size_t offset = 0;
    for (unsigned at = 0; at < count; at++) {
        write_bytes(ring, unit_of(tail) + 1, offset, parts[at].data, parts[at].size);
        offset += parts[at].size;
    }
    FAULT(SEND_WRITTEN);
    atomic_store_explicit(&header->tail, advanced(tail, ring_units(size)), memory_order_release);
    FAULT(SEND_PUBLISHED);
}

/* ------------------------------------------------------------------ receivers */

enum ring_result ring_peek(struct ring *ring, struct record *record)
{
    struct header *header = ring->header;
    uint64_t head = atomic_load_explicit(&header->head, memory_order_relaxed);
    uint64_t tail = atomic_load_explicit(&header->tail_seen, memory_order_relaxed);
    /* Acquired when it was read, by whoever read it; the lock has passed that on. */
    if (tail == head || !plausible(ring, tail, head)) {
        tail = atomic_load_explicit(&header->tail, memory_order_acquire);
        if (tail == head)
            return RING_EMPTY;
        if (!plausible(ring, tail, head))
            return RING_BROKEN;
        atomic_store_explicit(&header->tail_seen, tail, memory_order_relaxed);
    }
    uint64_t said;
    memcpy(&said, address(ring, unit_of(head)), UNIT); /* once: it may change under our hands */
    record->head = head;
    record->number = number_of(head);
    record->size = (uint32_t)said;
    record->parts = (uint16_t)(said >> 32);
    record->kind = (uint16_t)(said >> 48);
    record->at = unit_of(head) + 1;
    uint32_t used = unit_of(tail) - unit_of(head);
    if (record->size > (size_t)(used - 1) * UNIT || record->kind > RECORD_EXTENT || record->parts < 1 ||
        record->parts > MOST_PARTS)
        return RING_BROKEN;
    return RING_OK;
}

void ring_advance(struct ring *ring, const struct record *record)
{
    /* Released: a sender that sees the room may write where this has read. */
    atomic_store_explicit(&ring->header->head, advanced(record->head, ring_units(record->size)), memory_order_release);
    FAULT(RECV_TAKEN);
}

/* ------------------------------------------------------------------ looking */

uint32_t ring_depth(struct ring *ring)
{
    uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_acquire);
    uint64_t tail = atomic_load_explicit(&ring->header->tail, memory_order_acquire);
    uint32_t waiting = number_of(tail) - number_of(head);
    return waiting < ring->capacity ? waiting : ring->capacity; /* messages may come and go between the two looks */
}

bool ring_has_taken(struct ring *ring, uint32_t number)
{
    return (int32_t)(number_of(atomic_load_explicit(&ring->header->head, memory_order_acquire)) - number) > 0;
}

bool ring_has_published(struct ring *ring, uint32_t number)
{
    return (int32_t)(number_of(atomic_load_explicit(&ring->header->tail, memory_order_acquire)) - number) > 0;
}
