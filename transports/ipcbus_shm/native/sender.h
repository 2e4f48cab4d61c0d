/* The sending end in one process, and how its two ways of sending wait and publish. */
#ifndef IPCBUS_SENDER_H
#define IPCBUS_SENDER_H

#include "message.h"
#include "native.h"

typedef struct {
    PyObject_HEAD
    struct side side;
    PyObject *wait;      /* called with the seconds left and the bytes wanted: returns when there may be room, or raises */
    Py_ssize_t most_inline;
    size_t wanted; /* bytes that found no room last; 0 when something did since */
    unsigned char head[HEAD_BYTES]; /* what send_bytes puts before what it sends */
    size_t most_bytes;              /* that it may send */
    unsigned long long sent_short;  /* messages that it has sent */
} Sender;

/* What somebody waits for: room for so many bytes. */
struct wish {
    const Sender *self;
    size_t bytes;
    uint64_t most; /* bytes that may wait in the arena, these included */
};

bool sender_has_room(const void *wish);

/* Wait until there may be room for so many bytes; false with an exception set. */
bool sender_wait(Sender *self, size_t wanted, int64_t until);

/* What goes into the ring: the message itself, or where it is. */
struct entry {
    enum record_kind kind;
    struct part parts[MOST_PARTS + 1];
    unsigned count; /* of pieces to write */
    uint16_t said;  /* of the message's parts */
    size_t size;
    struct held *held;
};

/* Put an entry into the ring, however long that takes; false with an exception set. */
bool sender_put(Sender *self, struct entry *entry, size_t wanted, int64_t until);

/* Send a message that does not go through the ring; false with an exception set. */
bool sender_put_large(Sender *self, struct message *message, int64_t until);

#endif
