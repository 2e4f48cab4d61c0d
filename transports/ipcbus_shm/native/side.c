#include "native.h"

#include <math.h>
#include <string.h>

/* Nanoseconds of a spin during which other threads of the process have to wait: letting them run costs as much. */
#define BRIEF INT64_C(2000)
/* Nanoseconds for which a call that must not block waits for a lock. */
#define INSTANT (NANOSECONDS / 100)

bool side_enter(struct side *side)
{
    if (side->closed) {
        raise_closed();
        return false;
    }
    side->users++;
    return true;
}

static void let_go(struct side *side)
{
    Segment *segment = side->segment;
    side->segment = NULL;
    Py_XDECREF((PyObject *)segment);
    owner_drop(side->owner);
    side->owner = NULL;
}

void side_leave(struct side *side)
{
    if (--side->users == 0 && side->closed)
        let_go(side);
}

void side_close(struct side *side, struct bell *bell)
{
    if (side->closed)
        return;
    side->closed = true;
    if (side->users) {
        if (bell)
            bell_wake_all(bell); /* others wake up for nothing, which does no harm */
    } else
        let_go(side);
}

PyObject *end_depth(End *self, PyObject *nothing)
{
    (void)nothing;
    if (self->side.closed)
        return PyLong_FromLong(0);
    return PyLong_FromUnsignedLong(ring_depth(&self->side.segment->ring));
}

PyObject *end_abandon(End *self, PyObject *nothing)
{
    (void)nothing;
    self->side.closed = true;
    self->side.users = 0;
    let_go(&self->side);
    Py_RETURN_NONE;
}

PyObject *end_closed(End *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(self->side.closed);
}

bool side_moment(PyObject *timeout, int64_t *moment)
{
    if (timeout == Py_None) {
        *moment = NEVER;
        return true;
    }
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred())
        return false;
    if (isnan(seconds)) {
        PyErr_SetString(PyExc_ValueError, "a timeout is a number of seconds, not nan");
        return false;
    }
    if (seconds <= 0)
        *moment = 0;
    else if (seconds > 1e9)
        *moment = NEVER;
    else
        *moment = wait_now() + (int64_t)(seconds * 1e9);
    return true;
}

bool side_head(PyObject *bytes, unsigned char *head)
{
    if (!PyBytes_CheckExact(bytes) || PyBytes_Size(bytes) != HEAD_BYTES) {
        PyErr_Format(PyExc_ValueError, "a head is %u bytes", HEAD_BYTES);
        return false;
    }
    memcpy(head, PyBytes_AsString(bytes), HEAD_BYTES);
    return true;
}

int64_t side_patience(int64_t until)
{
    int64_t least = wait_now() + INSTANT;
    return until > least ? until : least;
}

static bool spin_until(bool (*done)(const void *), const void *what, int64_t until)
{
    for (;;) {
        for (int turn = 0; turn < 16; turn++) {
            if (done(what))
                return true;
            wait_pause();
        }
        if (wait_now() >= until)
            return false;
    }
}

bool side_spin(struct side *side, bool (*done)(const void *), const void *what, int64_t until)
{
    int64_t budget = spin_budget(&side->spin);
    if (!budget)
        return false;
    int64_t start = wait_now();
    int64_t last = start + budget < until ? start + budget : until;
    int64_t brief = start + BRIEF < last ? start + BRIEF : last;
    bool paid = spin_until(done, what, brief);
    if (!paid && brief < last) {
        Py_BEGIN_ALLOW_THREADS
        paid = spin_until(done, what, last);
        Py_END_ALLOW_THREADS
    }
    spin_learn(&side->spin, paid);
    return paid;
}
