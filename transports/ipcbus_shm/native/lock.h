/* Locks between processes that say so when their owner died.
 *
 * What a lock guards is consistent at every instant: the word that matters changes in one store. So whoever gets a lock
 * from a dead owner has nothing to repair, and goes on.
 */
#ifndef IPCBUS_LOCK_H
#define IPCBUS_LOCK_H

#include <pthread.h>
#include <stdint.h>

enum lock_result { LOCK_TAKEN, LOCK_BUSY, LOCK_BROKEN };

/* Make a lock in shared memory; 0 or an errno. */
int lock_init(pthread_mutex_t *lock);

/* Take a lock that is free, or will be in an instant: the owner needs less than a microsecond. */
enum lock_result lock_try(pthread_mutex_t *lock);

/* Take a lock, and wait for it until a moment of the monotonic clock, in nanoseconds. */
enum lock_result lock_until(pthread_mutex_t *lock, int64_t until);

void lock_release(pthread_mutex_t *lock);

#endif
