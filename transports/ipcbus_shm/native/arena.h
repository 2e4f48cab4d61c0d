/* The arena: large messages lie behind the ring, in extents, and the ring only says where.
 *
 * An extent is written by one sender, queued in the ring, mapped by one receiver for as long as that wants it, and then used
 * again: fresh pages cost more than the copy into them. Its entry's state says who has it, by number of a *slot*: a byte of
 * the file that its owner has locked, which the kernel undoes when the owner dies. What a dead owner had is found by
 * whoever needs an extent and has none. Places in the file are never used twice once their pages were given back, so an
 * extent needs no repair: its state is one word, and says all.
 *
 *   EMPTY -> GROWING -> WRITING -> QUEUED -> HELD -> FREE -> WRITING ...
 *                                                 -> DOOMED -> EMPTY
 */
#ifndef IPCBUS_ARENA_H
#define IPCBUS_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ring.h"

/* Bytes of messages that may wait in the arena; one message always may, whatever its size. */
#define MOST_WAITING ((uint64_t)256 << 20)
/* Beyond so many bytes, a sender gives receivers a moment first: what they free is still in the caches, and more is not. */
#define FEW_WAITING ((uint64_t)2 << 20)
/* Bytes of free extents that are kept for later messages: three of 64 MiB, which a stream of them takes up. */
#define MOST_FREE ((uint64_t)256 << 20)

enum arena_result { ARENA_OK, ARENA_FULL, ARENA_REFUSED, ARENA_DAMAGED };

#define WINDOWS 8

/* A sender's mapping of an extent, kept for the next message in it. */
struct window {
    uint64_t offset;
    uint64_t size;
    unsigned char *memory;
    unsigned users; /* threads that are writing through it */
};

struct arena {
    struct ring *ring;
    int fd;
    uint64_t begins;
    struct window windows[WINDOWS];
    unsigned oldest;
};

/* Who has extents: a slot, claimed by this process. Lives until nobody refers to it. */
struct owner {
    int fd;
    uint32_t slot;
    unsigned references;
    struct owner *next;
};

/* An extent in somebody's hands. */
struct held {
    struct owner *owner;
    uint32_t index;
    uint32_t number; /* of the message */
    uint64_t offset;
    uint64_t size; /* of the extent */
};

void arena_attach(struct arena *arena, struct ring *ring, int fd, uint64_t begins);
void arena_detach(struct arena *arena);

/* Claim a slot; NULL with errno, EUSERS where all are taken. */
struct owner *owner_claim(struct arena *arena);
void owner_drop(struct owner *owner);
/* In a forked child: the slots stay the parent's alone. */
void owners_forget(void);

/* Take over an extent of at least `need` bytes, under the arena's lock. ARENA_OK or ARENA_FULL; what is taken may still have
 * to get its memory, see arena_grow. */
enum arena_result arena_take(struct arena *arena, struct owner *owner, uint64_t need, struct held *held);

/* Free what dead owners had; tell whether there was anything. The arena's lock is held. */
bool arena_sweep(struct arena *arena, const struct owner *owner);

/* Give a taken extent its memory, if it has none yet. No lock is held. ARENA_REFUSED leaves errno, and nothing taken. */
enum arena_result arena_grow(struct arena *arena, struct held *held);

/* Tell whether a message of so many bytes can be taken in now, so that no more than `most` wait. */
bool arena_has_room(struct arena *arena, uint64_t need, uint64_t most);

/* Map a sender's extent; NULL with errno. To be followed by arena_window_done. The interpreter's lock is held for both. */
unsigned char *arena_window(struct arena *arena, const struct held *held);
void arena_window_done(struct arena *arena, unsigned char *memory, uint64_t size);

/* Mark an extent as part of the message that is published next. The senders' lock is held. */
void arena_queue(struct arena *arena, struct held *held, uint32_t number);

/* Take a queued extent over for a receiver. The receivers' lock is held. */
enum arena_result arena_hold(struct arena *arena, struct owner *owner, uint32_t index, uint32_t number, struct held *held);

/* Free the extent of a message that was dropped, or of one that is not sent after all. */
void arena_discard(struct arena *arena, uint32_t index, uint32_t number);
void arena_give_back(struct arena *arena, const struct held *held);

/* Free an extent that a receiver had and does not map any more. */
void arena_release(struct arena *arena, const struct held *held);

#endif
