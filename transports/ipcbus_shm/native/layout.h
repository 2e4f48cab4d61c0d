/* What is where in the memory that the processes of a channel share.
 *
 *   0           struct header           cursors, locks, bells; one page
 *   4096        pids                    of those who claim a slot; see ipcbus.plumbing.claim, which writes them
 *   8192        struct extent[EXTENTS]  who has which piece of the arena
 *   RING_AT     the ring                records, one behind the other, around the corner where it ends
 *   RING_AT + ring_bytes                the arena: extents, each the content of one large message
 *
 * A *cursor* is one 64-bit word: the number of a message in its upper half, and where its record begins in the lower, in
 * units of eight bytes. Both halves count on for ever, modulo 2^32; differences are what matters. The tail is where the
 * next record will be written, the head is where the oldest one begins: so the difference of the halves says how many
 * messages wait and how many units they take up. Since both are in one word, one store publishes a message, and one store
 * takes it: whoever is killed before that store has changed nothing, and after it is done.
 *
 * A record begins with a head of one unit, and never wraps inside it:
 *
 *   bits 0-31   bytes that follow       bits 32-47  parts of the message       bits 48-63  kind
 *
 * With more than one part, a table of their sizes (32 bits each; 64 in RECORD_EXTENT) comes first. The next record begins
 * at the next unit.
 *
 * Nothing in here is trusted by who reads it: sizes come from the handle, not from here, and what is read is checked
 * against them. The exception are the insides of the locks, which belong to the C library.
 */
#ifndef IPCBUS_LAYOUT_H
#define IPCBUS_LAYOUT_H

#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>

#define LAYOUT_MAGIC UINT64_C(0x316d687373756263)
#define PAGE 4096u
#define LINE 64
#define UNIT 8u
#define EXTENTS 1024u
#define EXTENTS_AT (2 * PAGE)
#define RING_AT (EXTENTS_AT + EXTENTS * sizeof(struct extent))
#define MOST_RING_BYTES (1u << 30)
#define MOST_PARTS 64u

typedef _Atomic uint64_t cursor;

/* Where one side waits for the other; see wait.h. */
struct bell {
    _Atomic uint32_t flags;
    _Atomic uint32_t turn;
};

/* Each side's words share a line with the lock under which they change, and with nothing of the other side's. */
struct header {
    alignas(LINE) uint64_t magic;
    uint64_t ring_bytes;
    uint64_t capacity;
    _Atomic uint32_t shut;

    alignas(LINE) cursor tail;
    cursor head_seen; /* by senders, under their lock: how much room there is at least */
    pthread_mutex_t send_lock;

    alignas(LINE) cursor head;
    cursor tail_seen; /* by receivers, under their lock: how many messages there are at least */
    pthread_mutex_t recv_lock;

    alignas(LINE) struct bell to_receivers;
    alignas(LINE) struct bell to_senders;

    alignas(LINE) pthread_mutex_t arena_lock;
    _Atomic uint64_t arena_end; /* where the next extent begins that is made anew */
};

/* One piece of the arena. An entry's state is one word, so that it changes hands in one store. */
struct extent {
    _Atomic uint64_t state;
    _Atomic uint64_t offset;
    _Atomic uint64_t size;
    uint64_t unused;
};

_Static_assert(sizeof(pthread_mutex_t) <= 48, "a lock and two cursors fit in a line");
_Static_assert(sizeof(struct header) <= PAGE, "the header fits in its page");
_Static_assert(sizeof(struct extent) == 32, "the table of extents is whole pages");
_Static_assert(RING_AT % PAGE == 0, "the ring begins on a page");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "cursors are words of the processor");

#endif
