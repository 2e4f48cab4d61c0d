/* The two ends of a channel without Python: what the C programs of this folder send and receive with.
 *
 * They use ring, arena, lock and wait as sender.c and receiver.c do, and check what these check, so that the files below
 * Python can be run under sanitizers that know nothing of an interpreter.
 */
#ifndef IPCBUS_ENDS_H
#define IPCBUS_ENDS_H

#include "arena.h"
#include "lock.h"
#include "ring.h"
#include "wait.h"

#define MOST_MESSAGE ((uint64_t)4 << 20)

enum result { DONE, FULL_OR_EMPTY, BROKEN, REFUSED };

/* A mapped channel; `owner` is one end's own, so each thread has a copy of this with another. */
struct channel {
    struct ring *ring;
    struct arena *arena;
    struct owner *owner;
    int fd;
    size_t mapped;
    uint64_t capacity;
    int senders_bell, receivers_bell;
};

/* Make a channel, or map it once more; the program ends where that fails. */
void channel_make(struct channel *channel, uint64_t ring_bytes, uint64_t capacity);
void channel_map(struct channel *channel, const struct channel *other);
void channel_unmap(struct channel *channel);
void channel_close(struct channel *channel);

/* Send bytes in a number of parts, beside the ring if they are many; wait until a moment for room. */
enum result channel_send(struct channel *channel, const unsigned char *data, size_t size, unsigned parts, int64_t until);

/* Take the oldest message: its bytes, in memory to be freed, and how many parts it had. */
enum result channel_recv(struct channel *channel, unsigned char **data, size_t *size, unsigned *parts, int64_t until);

/* Drop the oldest message. */
enum result channel_drop(struct channel *channel);

/* A generator of numbers that are the same on every run: splitmix64. */
uint64_t next_random(uint64_t *state);

#define CHECK(condition, ...)                                                                                                  \
    do {                                                                                                                       \
        if (!(condition)) {                                                                                                    \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                                                    \
            fprintf(stderr, __VA_ARGS__);                                                                                      \
            fputc('\n', stderr);                                                                                               \
            _exit(2);                                                                                                          \
        }                                                                                                                      \
    } while (0)

#endif
