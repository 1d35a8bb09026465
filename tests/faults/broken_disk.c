/* For LD_PRELOAD: opening a file whose path holds $BROKEN_PATH gives the error number $BROKEN_ERRNO. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static int is_broken(const char *path) {
  const char *broken = getenv("BROKEN_PATH");
  if (broken == NULL || path == NULL || strstr(path, broken) == NULL) return 0;
  errno = atoi(getenv("BROKEN_ERRNO"));
  return 1;
}

#define BREAKABLE(NAME)                                                      \
  int NAME(const char *path, int flags, ...) {                               \
    va_list rest;                                                            \
    va_start(rest, flags);                                                   \
    int mode = va_arg(rest, int);                                            \
    va_end(rest);                                                            \
    if (is_broken(path)) return -1;                                          \
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #NAME);           \
    return real(path, flags, mode);                                          \
  }

BREAKABLE(open)
BREAKABLE(open64)
