/* Fault points: named places at which a test kills, stops or interrupts the process that comes by.
 *
 * They exist only in a build with IPCBUS_SHM_FAULTS; elsewhere FAULT(...) is nothing at all.
 */
#ifndef IPCBUS_FAULT_H
#define IPCBUS_FAULT_H

#define FAULT_POINTS(POINT)                                                                                              \
    POINT(SEND_LOCKED)      /* a sender has the lock and has written nothing */                                          \
    POINT(SEND_WRITTEN)     /* the record is written and not published */                                                \
    POINT(SEND_PUBLISHED)   /* published, and the lock still held */                                                     \
    POINT(SEND_UNLOCKED)    /* the receivers have not been told */                                                       \
    POINT(RECV_LOCKED)      /* a receiver has the lock and has read nothing */                                           \
    POINT(RECV_COPIED)      /* the message is copied and still in the ring */                                            \
    POINT(RECV_TAKEN)       /* taken, and the lock still held */                                                         \
    POINT(RECV_UNLOCKED)    /* the senders have not been told */                                                         \
    POINT(DROP_LOCKED)      /* a sender is about to drop the oldest message */                                           \
    POINT(DROP_TAKEN)       /* it is out of the ring, and its extent not free yet */                                     \
    POINT(WAIT_ARMED)       /* somebody is about to sleep and has said so */                                             \
    POINT(BELL_ANSWERED)    /* sleepers are woken, and the bell still says that they sleep */                            \
    POINT(EXTENT_LOCKED)    /* the table of extents is locked and unchanged */                                           \
    POINT(EXTENT_GROWN)     /* the file has grown, and no entry has the new memory */                                    \
    POINT(EXTENT_TAKEN)     /* an extent is this sender's, and the lock still held */                                    \
    POINT(EXTENT_FILLED)    /* its content is written */                                                                 \
    POINT(EXTENT_QUEUED)    /* marked as part of a message that is not published */                                      \
    POINT(EXTENT_HELD)      /* marked as a receiver's, and the message still in the ring */                              \
    POINT(EXTENT_RELEASED)  /* no longer mapped, and not free yet */

#ifdef IPCBUS_SHM_FAULTS
#define FAULT_NAME(name) FAULT_##name,
enum fault { FAULT_POINTS(FAULT_NAME) FAULTS };
#undef FAULT_NAME

extern const char *const fault_names[FAULTS];

/* Have `signal` sent to this process the `nth` time it comes by the named point; -1 if there is no such point. */
int fault_plan(const char *name, int signal, int nth);
void fault_here(enum fault point);
#define FAULT(point) fault_here(FAULT_##point)
#else
#define FAULT(point) ((void)0)
#endif

#endif
