#define _GNU_SOURCE
#include "arena.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fault.h"

enum kind { EMPTY, FREE, GROWING, WRITING, QUEUED, HELD, DOOMED };

#define SLOTS 1000u

static inline uint64_t state_of(enum kind kind, uint32_t slot, uint32_t number)
{
    return (uint64_t)kind << 56 | (uint64_t)(slot & 0xffffff) << 32 | number;
}

static inline enum kind kind_of(uint64_t state) { return (enum kind)(state >> 56); }
static inline uint32_t slot_of(uint64_t state) { return (uint32_t)(state >> 32) & 0xffffff; }
static inline uint32_t number_of(uint64_t state) { return (uint32_t)state; }

static uint64_t load(const struct arena *arena, uint32_t index)
{
    return atomic_load_explicit(&arena->ring->extents[index].state, memory_order_acquire);
}

static void store(const struct arena *arena, uint32_t index, uint64_t state)
{
    atomic_store_explicit(&arena->ring->extents[index].state, state, memory_order_release);
}

static bool change(const struct arena *arena, uint32_t index, uint64_t from, uint64_t to)
{
    return atomic_compare_exchange_strong(&arena->ring->extents[index].state, &from, to);
}

void arena_attach(struct arena *arena, struct ring *ring, int fd, uint64_t begins)
{
    memset(arena, 0, sizeof *arena);
    arena->ring = ring;
    arena->fd = fd;
    arena->begins = begins;
}

void arena_detach(struct arena *arena)
{
    for (unsigned at = 0; at < WINDOWS; at++)
        if (arena->windows[at].memory)
            munmap(arena->windows[at].memory, arena->windows[at].size);
    memset(arena->windows, 0, sizeof arena->windows);
}

/* ------------------------------------------------------------------ owners */

static struct owner *owners;
static pthread_mutex_t owners_lock = PTHREAD_MUTEX_INITIALIZER;

/* A description of our own: the locks of one that came by inheritance are the parent's, too. */
static int reopen(int fd)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

static int lock_slot(int fd, int command, uint32_t slot, struct flock *lock)
{
    *lock = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = slot, .l_len = 1};
    return fcntl(fd, command, lock);
}

static void inherit(struct arena *arena, uint32_t slot);

struct owner *owner_claim(struct arena *arena)
{
    struct owner *owner = calloc(1, sizeof *owner);
    if (!owner)
        return NULL;
    struct flock lock;
    owner->fd = reopen(arena->fd);
    owner->references = 1;
    for (owner->slot = 0; owner->fd >= 0 && owner->slot < SLOTS; owner->slot++)
        if (lock_slot(owner->fd, F_OFD_SETLK, owner->slot, &lock) == 0) {
            inherit(arena, owner->slot);
            pthread_mutex_lock(&owners_lock);
            owner->next = owners;
            owners = owner;
            pthread_mutex_unlock(&owners_lock);
            return owner;
        }
    int code = owner->fd < 0 ? errno : EUSERS;
    if (owner->fd >= 0)
        close(owner->fd);
    free(owner);
    errno = code;
    return NULL;
}

void owner_drop(struct owner *owner)
{
    if (!owner || --owner->references)
        return;
    pthread_mutex_lock(&owners_lock);
    for (struct owner **at = &owners; *at; at = &(*at)->next)
        if (*at == owner) {
            *at = owner->next;
            break;
        }
    pthread_mutex_unlock(&owners_lock);
    if (owner->fd >= 0)
        close(owner->fd);
    free(owner);
}

void owners_forget(void)
{
    for (struct owner *owner = owners; owner; owner = owner->next) {
        close(owner->fd);
        owner->fd = -1;
    }
}

/* Tell whether nobody has a slot. Asked of a description that has no locks of its own: they would not show. */
static bool is_dead(const struct arena *arena, uint32_t slot)
{
    struct flock lock;
    return slot >= SLOTS || (lock_slot(arena->fd, F_OFD_GETLK, slot, &lock) == 0 && lock.l_type == F_UNLCK);
}

/* ------------------------------------------------------------------ what the dead had */

static void punch(const struct arena *arena, uint32_t index)
{
    struct extent *extent = &arena->ring->extents[index];
    uint64_t offset = atomic_load_explicit(&extent->offset, memory_order_relaxed);
    uint64_t size = atomic_load_explicit(&extent->size, memory_order_relaxed);
    if (offset >= arena->begins && offset <= INT64_MAX && size && size <= INT64_MAX - offset)
        fallocate(arena->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size);
}

/* Tell whether an extent is of use to nobody if the owner that its state names is dead. */
static bool is_left_behind(const struct arena *arena, uint64_t state)
{
    switch (kind_of(state)) {
    case GROWING:
    case DOOMED:
    case WRITING:
        return true;
    case QUEUED: /* no longer, or never: its sender died before it could publish it */
    case HELD:   /* who died before it could take the message leaves it to the next receiver */
        return !ring_has(arena->ring, number_of(state));
    default:
        return false;
    }
}

/* Free what a dead owner left behind; false if somebody else was faster. `slot` is of who does this. */
static bool bury(const struct arena *arena, uint32_t index, uint64_t state, uint32_t slot)
{
    if (kind_of(state) != GROWING && kind_of(state) != DOOMED)
        return change(arena, index, state, state_of(FREE, 0, 0));
    /* Its pages may only be given back by one: once it is empty, the entry may stand for other pages at any time. Counted,
     * so that the slot of a dead owner who was at this, and this one's, which may be the same, are told apart. */
    uint64_t mine = state_of(DOOMED, slot, number_of(state) + 1);
    if (!change(arena, index, state, mine))
        return false;
    punch(arena, index);
    return change(arena, index, mine, state_of(EMPTY, 0, 0));
}

static void inherit(struct arena *arena, uint32_t slot)
{
    for (uint32_t index = 0; index < EXTENTS; index++) {
        uint64_t state = load(arena, index);
        if (kind_of(state) >= GROWING && slot_of(state) == slot && is_left_behind(arena, state))
            bury(arena, index, state, slot);
    }
}

bool arena_sweep(struct arena *arena, const struct owner *owner)
{
    bool alive[SLOTS] = {0}, found = false;
    alive[owner->slot] = true;
    for (uint32_t index = 0; index < EXTENTS; index++) {
        uint64_t state = load(arena, index);
        uint32_t slot = slot_of(state);
        if (kind_of(state) < GROWING)
            continue;
        if (kind_of(state) == QUEUED && ring_has_taken(arena->ring, number_of(state))) {
            /* Dropped, by somebody who may have died before it could free it. */
            found |= change(arena, index, state, state_of(FREE, 0, 0));
            continue;
        }
        if ((slot < SLOTS && alive[slot]) || !is_left_behind(arena, state))
            continue;
        /* Asked for each, and never remembered: a slot of the dead may be claimed at any time. Looked at before, since what a
         * new owner takes out of the ring is its own, and behind, since who died may have published it at last. */
        if (!is_dead(arena, slot))
            alive[slot] = true;
        else if (is_left_behind(arena, state))
            found |= bury(arena, index, state, owner->slot);
    }
    return found;
}

/* ------------------------------------------------------------------ senders */

/* Round a size up so that messages of similar sizes can use each other's extents. */
static uint64_t rounded(uint64_t need)
{
    uint64_t step = PAGE;
    while (step * 16 < need)
        step *= 2;
    return (need + step - 1) / step * step;
}

struct survey {
    uint64_t waiting;
    uint64_t free;
    uint32_t fitting; /* EXTENTS where there is none */
    uint32_t empty;
};

static struct survey survey(const struct arena *arena, uint64_t need)
{
    struct survey found = {0, 0, EXTENTS, EXTENTS};
    uint64_t best = UINT64_MAX;
    for (uint32_t index = 0; index < EXTENTS; index++) {
        uint64_t state = load(arena, index);
        uint64_t size = atomic_load_explicit(&arena->ring->extents[index].size, memory_order_relaxed);
        switch (kind_of(state)) {
        case EMPTY:
            if (found.empty == EXTENTS)
                found.empty = index;
            if (!size) /* never used, and so is none behind it: the first that is empty is always the next to be */
                return found;
            break;
        case FREE:
            found.free += size;
            if (size >= need && size <= need + need / 2 && size < best) {
                best = size;
                found.fitting = index;
            }
            break;
        case QUEUED:
            if (ring_has(arena->ring, number_of(state))) /* not what died before it was published */
                found.waiting += size;
            break;
        default:
            break;
        }
    }
    return found;
}

bool arena_has_room(struct arena *arena, uint64_t need, uint64_t most)
{
    struct survey found = survey(arena, need);
    if (found.waiting && found.waiting + need > most)
        return false;
    return found.fitting < EXTENTS || found.empty < EXTENTS || found.free;
}

/* Give back the memory of free extents until no more than so many bytes are free. The arena's lock is held. */
static void trim(const struct arena *arena, const struct owner *owner, uint64_t most)
{
    uint64_t kept = 0;
    for (uint32_t index = 0; index < EXTENTS; index++) {
        uint64_t state = load(arena, index);
        if (kind_of(state) != FREE)
            continue;
        uint64_t size = atomic_load_explicit(&arena->ring->extents[index].size, memory_order_relaxed);
        if (size <= most - kept) {
            kept += size;
            continue;
        }
        if (change(arena, index, state, state_of(DOOMED, owner->slot, 0))) {
            punch(arena, index);
            store(arena, index, state_of(EMPTY, 0, 0));
        }
    }
}

enum arena_result arena_take(struct arena *arena, struct owner *owner, uint64_t need, struct held *held)
{
    FAULT(EXTENT_LOCKED);
    struct survey found = survey(arena, need);
    if (found.fitting == EXTENTS && arena_sweep(arena, owner))
        found = survey(arena, need);
    if (found.waiting && found.waiting + need > MOST_WAITING)
        return ARENA_FULL;
    struct extent *extent;
    *held = (struct held){.owner = owner};
    if (found.fitting < EXTENTS) {
        held->index = found.fitting;
        extent = &arena->ring->extents[held->index];
        held->offset = atomic_load_explicit(&extent->offset, memory_order_relaxed);
        held->size = atomic_load_explicit(&extent->size, memory_order_relaxed);
        if (held->size < need) /* it was enough just now, so somebody writes here who must not */
            return ARENA_DAMAGED;
        store(arena, held->index, state_of(WRITING, owner->slot, 0));
        FAULT(EXTENT_TAKEN);
        return ARENA_OK;
    }
    uint64_t size = rounded(need);
    if (found.empty == EXTENTS || found.free + size > MOST_FREE) {
        /* What is free fits nobody at present; it makes way. */
        trim(arena, owner, found.empty < EXTENTS && size < MOST_FREE ? MOST_FREE - size : 0);
        found = survey(arena, need);
        if (found.empty == EXTENTS)
            return ARENA_FULL;
    }
    held->index = found.empty;
    extent = &arena->ring->extents[held->index];
    held->offset = atomic_load_explicit(&arena->ring->header->arena_end, memory_order_relaxed);
    held->size = size;
    if (held->offset < arena->begins || held->offset > INT64_MAX || held->offset % PAGE || size > INT64_MAX - held->offset)
        return ARENA_DAMAGED;
    /* In this order: a place that was given away once is not given away again, whenever this is killed. */
    atomic_store_explicit(&arena->ring->header->arena_end, held->offset + size, memory_order_relaxed);
    atomic_store_explicit(&extent->offset, held->offset, memory_order_relaxed);
    atomic_store_explicit(&extent->size, size, memory_order_relaxed);
    store(arena, held->index, state_of(GROWING, owner->slot, 0));
    FAULT(EXTENT_TAKEN);
    return ARENA_OK;
}

enum arena_result arena_grow(struct arena *arena, struct held *held)
{
    if (kind_of(load(arena, held->index)) != GROWING)
        return ARENA_OK;
    if (fallocate(arena->fd, 0, (off_t)held->offset, (off_t)held->size) < 0) {
        int code = errno;
        punch(arena, held->index);
        store(arena, held->index, state_of(EMPTY, 0, 0));
        errno = code;
        return ARENA_REFUSED;
    }
    FAULT(EXTENT_GROWN);
    store(arena, held->index, state_of(WRITING, held->owner->slot, 0));
    return ARENA_OK;
}

/* Tell whether the file has an extent: what lies behind its end cannot be touched (SIGBUS). */
static bool is_within(const struct arena *arena, uint64_t offset, uint64_t size)
{
    struct stat file;
    if (fstat(arena->fd, &file) < 0)
        return false;
    uint64_t end = (uint64_t)file.st_size;
    return offset >= arena->begins && offset % PAGE == 0 && size && size % PAGE == 0 && size <= end && offset <= end - size;
}

unsigned char *arena_window(struct arena *arena, const struct held *held)
{
    struct window *unused = NULL;
    for (unsigned at = 0; at < WINDOWS; at++) {
        struct window *window = &arena->windows[(arena->oldest + at) % WINDOWS];
        if (window->memory && window->offset == held->offset && window->size == held->size) {
            window->users++;
            return window->memory;
        }
        if (!window->users && !unused)
            unused = window;
    }
    if (!is_within(arena, held->offset, held->size)) {
        errno = EBADMSG;
        return NULL;
    }
    void *memory = mmap(NULL, held->size, PROT_READ | PROT_WRITE, MAP_SHARED, arena->fd, (off_t)held->offset);
    if (memory == MAP_FAILED)
        return NULL;
    if (unused) { /* else it is for this once */
        if (unused->memory)
            munmap(unused->memory, unused->size);
        *unused = (struct window){held->offset, held->size, memory, 1};
        arena->oldest = (unsigned)(unused - arena->windows) + 1;
    }
    return memory;
}

void arena_window_done(struct arena *arena, unsigned char *memory, uint64_t size)
{
    for (unsigned at = 0; at < WINDOWS; at++)
        if (arena->windows[at].memory == memory) {
            arena->windows[at].users--;
            return;
        }
    munmap(memory, size);
}

void arena_queue(struct arena *arena, struct held *held, uint32_t number)
{
    held->number = number;
    store(arena, held->index, state_of(QUEUED, held->owner->slot, number));
    FAULT(EXTENT_QUEUED);
}

void arena_give_back(struct arena *arena, const struct held *held)
{
    store(arena, held->index, state_of(FREE, 0, 0));
}

/* ------------------------------------------------------------------ receivers */

enum arena_result arena_hold(struct arena *arena, struct owner *owner, uint32_t index, uint32_t number, struct held *held)
{
    if (index >= EXTENTS)
        return ARENA_DAMAGED;
    uint64_t state = load(arena, index);
    if ((kind_of(state) != QUEUED && kind_of(state) != HELD) || number_of(state) != number)
        return ARENA_DAMAGED;
    struct extent *extent = &arena->ring->extents[index];
    held->owner = owner;
    held->index = index;
    held->number = number;
    held->offset = atomic_load_explicit(&extent->offset, memory_order_relaxed);
    held->size = atomic_load_explicit(&extent->size, memory_order_relaxed);
    if (!is_within(arena, held->offset, held->size))
        return ARENA_DAMAGED;
    store(arena, index, state_of(HELD, owner->slot, number));
    FAULT(EXTENT_HELD);
    return ARENA_OK;
}

void arena_discard(struct arena *arena, uint32_t index, uint32_t number)
{
    if (index >= EXTENTS)
        return;
    uint64_t state = load(arena, index);
    if ((kind_of(state) == QUEUED || kind_of(state) == HELD) && number_of(state) == number)
        change(arena, index, state, state_of(FREE, 0, 0));
}

void arena_release(struct arena *arena, const struct held *held)
{
    FAULT(EXTENT_RELEASED);
    uint64_t state = state_of(HELD, held->owner->slot, held->number);
    if (survey(arena, 0).free + held->size <= MOST_FREE) {
        change(arena, held->index, state, state_of(FREE, 0, 0));
        return;
    }
    uint64_t doomed = state_of(DOOMED, held->owner->slot, 0);
    if (change(arena, held->index, state, doomed)) {
        punch(arena, held->index);
        change(arena, held->index, doomed, state_of(EMPTY, 0, 0));
    }
}
