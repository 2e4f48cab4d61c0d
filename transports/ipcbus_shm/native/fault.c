#include "fault.h"

#ifdef IPCBUS_SHM_FAULTS
#include <signal.h>
#include <string.h>

#define FAULT_TEXT(name) #name,
const char *const fault_names[FAULTS] = {FAULT_POINTS(FAULT_TEXT)};

static struct {
    int point;
    int signal;
    int left;
} plan = {-1, 0, 0};

int fault_plan(const char *name, int signal, int nth)
{
    for (int point = 0; point < FAULTS; point++)
        if (!strcmp(name, fault_names[point])) {
            plan.point = point;
            plan.signal = signal;
            plan.left = nth;
            return 0;
        }
    return -1;
}

void fault_here(enum fault point)
{
    if ((int)point == plan.point && plan.left > 0 && --plan.left == 0)
        raise(plan.signal);
}
#else
typedef int fault_nothing; /* ISO C wants something in every file */
#endif
