/* A message on its way in: a frame taken apart into pieces of memory. */
#ifndef IPCBUS_MESSAGE_H
#define IPCBUS_MESSAGE_H

#include "native.h"

struct message {
    struct part parts[MOST_PARTS];
    Py_buffer views[MOST_PARTS];
    unsigned count;
    unsigned viewed;
    size_t size; /* bytes of all parts */
    PyObject *joined;
};

/* Find out where the parts of a frame are; false with an exception set. To be let go of in either case. */
bool message_take_apart(struct message *message, PyObject *frame);
void message_let_go(struct message *message);

#endif
