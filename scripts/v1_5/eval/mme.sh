#!/bin/bash
# MME: perception + cognition. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark mme ${SPLIT:+--split "$SPLIT"} "$@"
