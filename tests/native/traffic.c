/* Traffic without Python: threads, processes and killed processes send and receive, and what arrives is checked.
 *
 *   traffic threads|processes|kills SECONDS
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ends.h"

#define SENDERS 4u
#define LATE (20 * NANOSECONDS)
#define RING ((uint64_t)64 << 10)
#define LARGEST 40000u

/* A message: who sent it, which it is of theirs, and bytes that follow from both. */
struct stamp {
    uint32_t sender, number;
};

static size_t size_of(struct stamp stamp)
{
    uint32_t n = stamp.number * 2654435761u + stamp.sender;
    return sizeof stamp + (stamp.number % 16 == 7 ? n % LARGEST : n % 600);
}

static unsigned parts_of(struct stamp stamp) { return 1 + stamp.number % 5; }

static unsigned char byte_of(struct stamp stamp, size_t at) { return (unsigned char)(stamp.number * 31 + stamp.sender + at * 7); }

static void write_message(struct stamp stamp, unsigned char *data)
{
    memcpy(data, &stamp, sizeof stamp);
    for (size_t at = sizeof stamp; at < size_of(stamp); at++)
        data[at] = byte_of(stamp, at);
}

/* Receive one message, see that it is whole, and return its stamp. */
static enum result receive(struct channel *channel, struct stamp *stamp, int64_t until)
{
    unsigned char *data;
    size_t size;
    unsigned parts;
    enum result result = channel_recv(channel, &data, &size, &parts, until);
    if (result != DONE)
        return result;
    CHECK(size >= sizeof *stamp, "%zu bytes", size);
    memcpy(stamp, data, sizeof *stamp);
    CHECK(size == size_of(*stamp) && parts == parts_of(*stamp), "message %u of %u has %zu bytes in %u parts", stamp->number,
          stamp->sender, size, parts);
    for (size_t at = sizeof *stamp; at < size; at++)
        CHECK(data[at] == byte_of(*stamp, at), "message %u of %u differs at byte %zu", stamp->number, stamp->sender, at);
    free(data);
    return DONE;
}

static void send_one(struct channel *channel, struct stamp stamp)
{
    unsigned char data[LARGEST + sizeof stamp];
    write_message(stamp, data);
    enum result result = channel_send(channel, data, size_of(stamp), parts_of(stamp), wait_now() + LATE);
    CHECK(result == DONE, "message %u of %u: result %d", stamp.number, stamp.sender, result);
}

/* ------------------------------------------------------------------ several threads, several processes */

struct worker {
    struct channel channel;
    uint32_t name;
    int64_t until;
};

static void *send_until(void *what)
{
    struct worker *self = what;
    struct stamp stamp = {self->name, 0};
    for (; wait_now() < self->until || stamp.number < 200; stamp.number++)
        send_one(&self->channel, stamp);
    /* The last one says how many there were, by its number; and that it is the last, by its sender. */
    stamp.sender += SENDERS;
    send_one(&self->channel, stamp);
    owner_drop(self->channel.owner);
    return NULL;
}

/* What the receivers found: each checks the order of what it got itself; together they got everything. */
static _Atomic uint64_t received[SENDERS];
static _Atomic uint64_t sent[SENDERS];
static _Atomic uint32_t ended;

static void *receive_all(void *what)
{
    struct worker *self = what;
    uint32_t next[SENDERS] = {0};
    struct stamp stamp;
    while (atomic_load(&ended) < SENDERS) {
        enum result result = receive(&self->channel, &stamp, wait_now() + NANOSECONDS / 20);
        CHECK(result == DONE || result == FULL_OR_EMPTY, "result %d", result);
        if (result != DONE)
            continue;
        uint32_t sender = stamp.sender % SENDERS;
        CHECK(stamp.number >= next[sender], "message %u of %u after %u", stamp.number, sender, next[sender]);
        next[sender] = stamp.number + 1;
        if (stamp.sender >= SENDERS) {
            atomic_store(&sent[sender], stamp.number);
            atomic_fetch_add(&ended, 1);
        } else
            atomic_fetch_add(&received[sender], 1);
    }
    owner_drop(self->channel.owner);
    return NULL;
}

static void all_arrived(struct channel *channel)
{
    uint64_t count = 0;
    for (unsigned at = 0; at < SENDERS; at++) {
        CHECK(atomic_load(&received[at]) == atomic_load(&sent[at]), "%lu of %lu messages of sender %u arrived",
              (unsigned long)received[at], (unsigned long)sent[at], at);
        count += received[at];
    }
    CHECK(ring_depth(channel->ring) == 0, "%u messages are left", ring_depth(channel->ring));
    printf("%lu messages\n", (unsigned long)count);
}

static void threads(int64_t until)
{
    /* Windows onto extents are guarded by the interpreter's lock, so each sender has its own; the rest is shared. */
    struct channel channel;
    channel_make(&channel, RING, 100);
    struct worker workers[SENDERS + 2];
    pthread_t running[SENDERS + 2];
    struct arena arenas[SENDERS + 2];
    for (unsigned at = 0; at < SENDERS + 2; at++) {
        workers[at] = (struct worker){channel, at, until};
        arenas[at] = *channel.arena;
        workers[at].channel.arena = &arenas[at];
        CHECK(pthread_create(&running[at], NULL, at < SENDERS ? send_until : receive_all, &workers[at]) == 0, "no thread");
    }
    for (unsigned at = 0; at < SENDERS + 2; at++) {
        pthread_join(running[at], NULL);
        arena_detach(&arenas[at]);
    }
    all_arrived(&channel);
    channel_close(&channel);
}

static pid_t start(void (*run)(struct worker *), const struct channel *channel, uint32_t name, int64_t until)
{
    pid_t pid = fork();
    CHECK(pid >= 0, "no process");
    if (pid)
        return pid;
    struct worker self = {.name = name, .until = until};
    channel_map(&self.channel, channel); /* at another address than the parent's */
    run(&self);
    _exit(0);
}

static void run_sender(struct worker *self) { send_until(self); }

static void processes(int64_t until)
{
    struct channel channel;
    channel_make(&channel, RING, 100);
    pid_t pids[SENDERS];
    for (unsigned at = 0; at < SENDERS; at++)
        pids[at] = start(run_sender, &channel, at, until);
    struct worker self = {.channel = channel};
    receive_all(&self);
    for (unsigned at = 0; at < SENDERS; at++) {
        int status;
        waitpid(pids[at], &status, 0);
        CHECK(status == 0, "sender %u ended with status %d", at, status);
    }
    all_arrived(&channel);
    channel_close(&channel);
}

/* ------------------------------------------------------------------ killed processes */

static void send_for_ever(struct worker *self)
{
    for (struct stamp stamp = {self->name, 0};; stamp.number++)
        send_one(&self->channel, stamp);
}

static void receive_for_ever(struct worker *self)
{
    struct stamp stamp;
    for (;;) {
        enum result result = receive(&self->channel, &stamp, wait_now() + LATE);
        CHECK(result == DONE, "the receiver that is to be killed: result %d", result);
    }
}

static void kill_one(pid_t pid)
{
    int status;
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, &status, 0) == pid, "lost a child");
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "a child ended by itself: status %d", status);
}

/* One sender is killed while this receives, then one receiver while this sends; what is left is whole and in order. */
static void kills(int64_t until)
{
    uint64_t random = 1;
    unsigned trials = 0;
    for (; wait_now() < until || trials < 10; trials++) {
        struct channel channel;
        channel_make(&channel, RING, 100);
        int64_t instant = wait_now() + (int64_t)(next_random(&random) % (NANOSECONDS / 100));
        pid_t pid = start(send_for_ever, &channel, 0, 0), other = start(send_for_ever, &channel, 1, 0);
        struct stamp stamp;
        uint32_t next[2] = {0};
        bool killed = false;
        for (unsigned after = 0; after < 200; after += killed && stamp.sender == 1) {
            if (!killed && wait_now() >= instant) {
                kill_one(pid);
                killed = true;
            }
            enum result result = receive(&channel, &stamp, wait_now() + LATE);
            CHECK(result == DONE, "trial %u: stuck behind a killed sender: result %d", trials, result);
            CHECK(stamp.sender < 2 && stamp.number == next[stamp.sender]++, "trial %u: message %u of %u is out of order", trials,
                  stamp.number, stamp.sender);
        }
        kill_one(other);
        while (receive(&channel, &stamp, 0) == DONE)
            CHECK(stamp.number == next[stamp.sender]++, "trial %u: out of order at the end", trials);
        instant = wait_now() + (int64_t)(next_random(&random) % (NANOSECONDS / 100));
        pid = start(receive_for_ever, &channel, 0, 0);
        stamp = (struct stamp){2, 0};
        for (; wait_now() < instant; stamp.number++)
            send_one(&channel, stamp);
        kill_one(pid);
        unsigned depth = ring_depth(channel.ring);
        for (uint32_t first = stamp.number - depth; depth; depth--, first++) {
            struct stamp found;
            CHECK(receive(&channel, &found, wait_now() + LATE) == DONE, "trial %u: stuck behind a killed receiver", trials);
            CHECK(found.number == first, "trial %u: message %u came for %u", trials, found.number, first);
        }
        channel_close(&channel);
    }
    printf("%u trials\n", trials);
}

int main(int count, char **arguments)
{
    CHECK(count == 3, "traffic threads|processes|kills SECONDS");
    int64_t until = wait_now() + (int64_t)(atof(arguments[2]) * 1e9);
    if (!strcmp(arguments[1], "threads"))
        threads(until);
    else if (!strcmp(arguments[1], "processes"))
        processes(until);
    else if (!strcmp(arguments[1], "kills"))
        kills(until);
    else
        CHECK(false, "what is %s?", arguments[1]);
    return 0;
}
