"""Kills this process if it does not end in time, whatever its threads do.

`_alarm_py` is the twin in Python. Here the default action of SIGALRM ends the process. That needs no
Python thread: a regular expression on a client's text can hold the GIL for minutes.
"""

from libc.math cimport ceil

cdef extern from *:
    """
    #include <signal.h>
    #include <unistd.h>

    static volatile sig_atomic_t spop_ordered;
    static unsigned int spop_seconds;
    static void (*spop_handler)(int);

    static void spop_order(unsigned int seconds) {
        struct sigaction by_default = { .sa_handler = SIG_DFL };
        if (!spop_ordered) {
            spop_ordered = 1;
            sigaction(SIGALRM, &by_default, NULL);
            alarm(seconds);
        }
    }

    static void spop_signalled(int number) {
        spop_order(spop_seconds);
        spop_handler(number);
    }

    static void spop_order_on(int number, unsigned int seconds) {
        struct sigaction action;
        sigaction(number, NULL, &action);
        spop_seconds = seconds;
        spop_handler = action.sa_handler;
        action.sa_handler = spop_signalled;
        sigaction(number, &action, NULL);
    }

    static void spop_cancel(void) {
        if (spop_ordered) {
            alarm(0);
            spop_ordered = 0;
        }
    }
    """
    void spop_order(unsigned int)
    void spop_order_on(int, unsigned int)
    void spop_cancel()


cdef unsigned int whole(double seconds):
    return <unsigned int>ceil(min(max(seconds, 1.0), 1e9))


def order(double seconds):
    """Kill this process in `seconds`, rounded up. An earlier order stays as it is."""
    spop_order(whole(seconds))


def order_on(int number, double seconds):
    """Call `order` when a signal comes, and then the handler that the signal has now.

    That handler must be Python's. All signals have the same `seconds`.
    """
    spop_order_on(number, whole(seconds))


def cancel():
    """Cancel the order, if there is one."""
    spop_cancel()
