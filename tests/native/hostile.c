/* Hostile memory: whatever a segment says about itself, a call returns a message, an error or nothing, and touches only what
 * is its own.
 *
 *   hostile [--seconds S] [--count N] [--seed X]
 *
 * Each round has a seed: from it, a channel is brought into some state, words of it are changed, and calls are made; in every
 * other round the words change again while the calls run. The rounds run in a child, so that any end of it is a finding, and
 * its seed is printed: `--count 1 --seed X` runs that round again. All memory that is mapped has a page on each side that
 * cannot be touched; run.py has the linker put them there.
 */
#define _GNU_SOURCE
#include <sanitizer/asan_interface.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ends.h"

#define RING ((uint64_t)16 << 10)
#define LARGEST 100000u
#define SLOW 20u /* seconds after which a round is stuck */
#define FRESH 1000u /* rounds after which the file is made anew: hostile sizes make it grow */

/* ------------------------------------------------------------------ memory with guards */

void *__real_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t size);
int __wrap_munmap(void *at, size_t size);

void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (at || size > SIZE_MAX - 2 * PAGE)
        return MAP_FAILED;
    unsigned char *guarded = __real_mmap(NULL, size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (guarded == MAP_FAILED)
        return MAP_FAILED;
    void *memory = __real_mmap(guarded + PAGE, size, protection, flags | MAP_FIXED, fd, offset);
    if (memory == MAP_FAILED)
        __real_munmap(guarded, size + 2 * PAGE);
    return memory;
}

int __wrap_munmap(void *at, size_t size) { return __real_munmap((unsigned char *)at - PAGE, size + 2 * PAGE); }

/* ------------------------------------------------------------------ what is changed */

static uint64_t odd_number(uint64_t *random)
{
    static const uint64_t odd[] = {0,          1,           7,          8,           16,          64,         65,
                                   PAGE,       RING,        RING + 1,   RING / UNIT, LARGEST,     EXTENTS,    EXTENTS - 1,
                                   UINT16_MAX, UINT32_MAX,  INT32_MAX,  1u << 31,    INT64_MAX,   UINT64_MAX, UINT64_C(1) << 63,
                                   1u << 20,   999,         1000,       RING_AT,     RING_AT + RING};
    uint64_t number = odd[next_random(random) % (sizeof odd / sizeof odd[0])];
    switch (next_random(random) % 6) {
    case 0:
        return next_random(random);
    case 1:
        return number + next_random(random) % 17 - 8;
    case 2:
        return number << 32 | (uint32_t)next_random(random);
    case 3:
        return number / PAGE * PAGE;
    default:
        return number;
    }
}

/* A word of eight bytes becomes another, near or far. */
static void change(void *where, uint64_t *random)
{
    _Atomic uint64_t *word = where;
    uint64_t value = atomic_load(word);
    switch (next_random(random) % 5) {
    case 0:
        value ^= UINT64_C(1) << next_random(random) % 64;
        break;
    case 1:
        value += next_random(random) % 33 - 16;
        break;
    case 2:
        value += (next_random(random) % 33 - 16) << 32;
        break;
    default:
        value = odd_number(random);
        break;
    }
    atomic_store(word, value);
}

static void change_extent(struct channel *channel, uint64_t *random)
{
    /* Mostly those that are in use, which are the first. */
    struct extent *extent = &channel->ring->extents[next_random(random) % (next_random(random) % 8 ? 4 : EXTENTS)];
    switch (next_random(random) % 4) {
    case 0: {
        uint64_t number = atomic_load(&channel->ring->header->head) >> 32;
        atomic_store(&extent->state, (next_random(random) % 8) << 56 | (next_random(random) % 3 * 500) << 32 |
                                         (uint32_t)(number + next_random(random) % 4 - 1));
        break;
    }
    case 1:
        atomic_store(&extent->size, next_random(random) % 40 * PAGE);
        break;
    default:
        change((void *[]){&extent->state, &extent->offset, &extent->size}[next_random(random) % 3], random);
    }
}

static void change_record(struct channel *channel, uint64_t *random)
{
    uint32_t unit = (uint32_t)atomic_load(&channel->ring->header->head) + next_random(random) % 10;
    void *word = channel->ring->data + (size_t)(unit & (channel->ring->units - 1)) * UNIT;
    if (next_random(random) % 2)
        change(word, random);
    else
        atomic_store((_Atomic uint64_t *)word, (odd_number(random) & UINT32_MAX) | (next_random(random) % 67) << 32 |
                                                   (next_random(random) % 3) << 48);
}

/* Change one thing. The insides of locks are not among them: these are the C library's, and it trusts them. */
static void change_something(struct channel *channel, uint64_t *random)
{
    struct header *header = channel->ring->header;
    void *words[] = {&header->tail,         &header->head,       &header->head_seen,  &header->tail_seen, &header->arena_end,
                     &header->to_receivers, &header->to_senders, &header->ring_bytes, &header->capacity,  &header->magic};
    switch (next_random(random) % 4) {
    case 0:
        change(words[next_random(random) % (sizeof words / sizeof words[0])], random);
        break;
    case 1:
        change_extent(channel, random);
        break;
    case 2:
        change_record(channel, random);
        break;
    default:
        change(channel->ring->data + next_random(random) % (RING / UNIT) * UNIT, random);
    }
}

/* Locks that are of another kind, while nobody has them; the C library would abort over some. */
static void change_lock(struct channel *channel, uint64_t *random)
{
#ifdef __GLIBC__
    struct header *header = channel->ring->header;
    pthread_mutex_t *locks[] = {&header->send_lock, &header->recv_lock, &header->arena_lock};
    locks[next_random(random) % 3]->__data.__kind = (int)next_random(random) & 0x1ff;
#endif
}

/* ------------------------------------------------------------------ while calls run */

/* Another thread changes words from when it is let loose until it is called off. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t news;
    struct channel *channel;
    uint64_t random;
    bool loose, ended;
} meddler = {.lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};

static void *meddle(void *nothing)
{
    pthread_mutex_lock(&meddler.lock);
    while (!meddler.ended)
        if (meddler.loose) {
            for (unsigned n = 0; n < 10; n++)
                change_something(meddler.channel, &meddler.random);
            pthread_mutex_unlock(&meddler.lock);
            pthread_mutex_lock(&meddler.lock);
        } else
            pthread_cond_wait(&meddler.news, &meddler.lock);
    pthread_mutex_unlock(&meddler.lock);
    return nothing;
}

static void meddler_tell(bool loose, bool ended, uint64_t seed)
{
    pthread_mutex_lock(&meddler.lock);
    meddler.loose = loose;
    meddler.ended = ended;
    meddler.random = seed;
    pthread_cond_signal(&meddler.news);
    pthread_mutex_unlock(&meddler.lock);
}

/* ------------------------------------------------------------------ rounds */

static unsigned char bytes[LARGEST];

static void call_something(struct channel *channel, uint64_t *random)
{
    unsigned char *data;
    size_t size;
    unsigned parts;
    enum result result;
    switch (next_random(random) % 6) {
    case 0:
        size = next_random(random) % (next_random(random) % 2 ? 500 : LARGEST);
        result = channel_send(channel, bytes, size, 1 + next_random(random) % MOST_PARTS, wait_now());
        break;
    case 1:
        result = channel_drop(channel);
        break;
    case 2:
        CHECK(ring_depth(channel->ring) <= channel->capacity, "depth");
        arena_has_room(channel->arena, next_random(random) % LARGEST, MOST_WAITING);
        ring_has_plenty(channel->ring, 10);
        result = DONE;
        break;
    default:
        result = channel_recv(channel, &data, &size, &parts, wait_now());
        if (result == DONE) {
            CHECK(size <= MOST_MESSAGE && parts >= 1 && parts <= MOST_PARTS, "%zu bytes in %u parts", size, parts);
            free(data);
        }
    }
    CHECK(result <= REFUSED, "result %d", result);
}

/* Bring a channel into some state that is none of a hostile one. */
static void bring_about(struct channel *channel, uint64_t *random)
{
    struct header *header = channel->ring->header;
    uint64_t begin = next_random(random) % 2 ? next_random(random) : UINT64_MAX - 5;
    atomic_store(&header->tail, begin);
    atomic_store(&header->head, begin);
    atomic_store(&header->head_seen, begin);
    atomic_store(&header->tail_seen, begin);
    for (uint64_t count = next_random(random) % 12; count; count--) {
        size_t size = next_random(random) % 4 ? next_random(random) % 800 : next_random(random) % LARGEST;
        channel_send(channel, bytes, size, 1 + next_random(random) % 5, wait_now());
    }
}

static void play(struct channel *channel, uint64_t seed)
{
    uint64_t random = seed;
    bring_about(channel, &random);
    for (uint64_t count = next_random(&random) % 5; count; count--)
        change_something(channel, &random);
    if (next_random(&random) % 16 == 0)
        change_lock(channel, &random);
    if (seed % 2)
        meddler_tell(true, false, seed);
    for (uint64_t count = 1 + next_random(&random) % 12; count; count--)
        call_something(channel, &random);
    if (seed % 2)
        meddler_tell(false, false, 0);
}

static void close_channel(struct channel *channel)
{
    ASAN_UNPOISON_MEMORY_REGION((unsigned char *)channel->ring->header + PAGE, PAGE);
    channel_close(channel);
}

/* What the child is at, for its parent. */
struct progress {
    _Atomic uint64_t seed, rounds;
};

static void play_all(struct progress *progress, uint64_t seed, uint64_t count, int64_t until)
{
    static unsigned char before[RING_AT + RING];
    struct channel channel;
    pthread_t thread;
    bool running = false;
    for (uint64_t round = 0; round < count && wait_now() < until; round++) {
        if (round % FRESH == 0) {
            if (round)
                close_channel(&channel);
            channel_make(&channel, RING, 20);
            memcpy(before, channel.ring->header, sizeof before);
            /* The pids are nothing to the C code. */
            ASAN_POISON_MEMORY_REGION((unsigned char *)channel.ring->header + PAGE, PAGE);
            meddler.channel = &channel;
        }
        if (!running)
            running = pthread_create(&thread, NULL, meddle, NULL) == 0;
        alarm(SLOW);
        atomic_store(&progress->seed, seed + round);
        play(&channel, seed + round);
        unsigned char *memory = (unsigned char *)channel.ring->header;
        memcpy(memory, before, PAGE);
        memcpy(memory + EXTENTS_AT, before + EXTENTS_AT, sizeof before - EXTENTS_AT);
        arena_detach(channel.arena); /* windows are of the extents that were there */
        atomic_fetch_add(&progress->rounds, 1);
    }
    meddler_tell(false, true, 0);
    pthread_join(thread, NULL);
    close_channel(&channel);
    exit(0); /* and have leaks looked for */
}

int main(int count, char **arguments)
{
    double seconds = 1e6;
    uint64_t rounds = UINT64_MAX, seed = 1;
    for (int at = 1; at + 1 < count; at += 2) {
        if (!strcmp(arguments[at], "--seconds"))
            seconds = atof(arguments[at + 1]);
        else if (!strcmp(arguments[at], "--count"))
            rounds = strtoull(arguments[at + 1], NULL, 10);
        else if (!strcmp(arguments[at], "--seed"))
            seed = strtoull(arguments[at + 1], NULL, 10);
        else
            CHECK(false, "what is %s?", arguments[at]);
    }
    struct progress *progress = __real_mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(progress != MAP_FAILED, "no memory");
    int64_t until = wait_now() + (int64_t)(seconds * 1e9);
    pid_t pid = fork();
    if (!pid)
        play_all(progress, seed, rounds, until);
    int status;
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid, "no child");
    printf("%lu rounds from seed %lu on\n", (unsigned long)progress->rounds, (unsigned long)seed);
    if (!status)
        return 0;
    if (WIFSIGNALED(status))
        fprintf(stderr, "%s\n", WTERMSIG(status) == SIGALRM ? "the round does not end" : strsignal(WTERMSIG(status)));
    fprintf(stderr, "FAILED: again with --count 1 --seed %lu (odd seeds: more than once)\n", (unsigned long)progress->seed);
    return 1;
}
