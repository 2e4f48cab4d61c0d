/* The ring: records in shared memory. Knows neither Python nor locks: whoever calls has the lock of its side. */
#ifndef IPCBUS_RING_H
#define IPCBUS_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

enum ring_result { RING_OK, RING_FULL, RING_EMPTY, RING_BROKEN };
enum record_kind { RECORD_INLINE, RECORD_EXTENT };

/* One mapped segment. The sizes are this process's own: what the memory says about itself is only compared with them. */
struct ring {
    struct header *header;
    struct extent *extents;
    unsigned char *data;
    uint32_t units;
    uint32_t capacity;
};

/* A piece of a message on its way in. */
struct part {
    const void *data;
    size_t size;
};

/* A record found at the head. */
struct record {
    uint64_t head; /* the cursor that it was found at */
    uint32_t number;
    uint32_t size; /* bytes behind the record's head */
    uint16_t parts;
    uint16_t kind;
    uint32_t at; /* unit of the first of these bytes */
};

/* How many bytes a file for this ring has before its arena, or 0 where the sizes make no sense. */
size_t ring_file_size(uint64_t ring_bytes, uint64_t capacity);

/* Write a fresh header; 0 or an errno. */
int ring_format(void *memory, uint64_t ring_bytes, uint64_t capacity);

/* Use mapped memory of ring_file_size bytes; false if it is not such a segment. */
bool ring_attach(struct ring *ring, void *memory, uint64_t ring_bytes, uint64_t capacity);

/* Units that a record takes up with so many bytes behind its head. */
uint32_t ring_units(size_t size);

/* Tell whether a message that takes up so many units has room. The lock is held. */
enum ring_result ring_room(struct ring *ring, uint32_t units);

/* Tell the same without a lock, for who only wants to know; never changes anything. */
bool ring_has_room(struct ring *ring, uint32_t units);

/* Tell whether there is room for a good many more: worth waiting for, for who would soon wait again. */
bool ring_has_plenty(struct ring *ring, uint32_t units);

/* The number that the next message gets. The lock is held. */
uint32_t ring_next_number(struct ring *ring);

/* Write a record of parts into room that is known to be there, and publish it. The lock is held. */
void ring_put(struct ring *ring, enum record_kind kind, const struct part *parts, unsigned count, uint16_t said, size_t size);

/* Find the oldest record. The lock is held. */
enum ring_result ring_peek(struct ring *ring, struct record *record);

/* Copy bytes out of a record; the caller keeps offset + size within record->size. */
void ring_read(const struct ring *ring, const struct record *record, size_t offset, void *into, size_t size);

/* Take the record out of the ring. The lock is held. */
void ring_advance(struct ring *ring, const struct record *record);

/* Messages that wait, as of some instant. */
uint32_t ring_depth(struct ring *ring);

/* Tell whether a message of this number has been taken out. */
bool ring_has_taken(struct ring *ring, uint32_t number);

/* Tell whether a message of this number has been published. */
bool ring_has_published(struct ring *ring, uint32_t number);

static inline bool ring_is_empty(struct ring *ring)
{
    return atomic_load_explicit(&ring->header->tail, memory_order_acquire) ==
           atomic_load_explicit(&ring->header->head, memory_order_acquire);
}

static inline bool ring_is_shut(struct ring *ring)
{
    return atomic_load_explicit(&ring->header->shut, memory_order_acquire) != 0;
}

#endif
