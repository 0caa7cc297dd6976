#!/bin/bash
# MMBench, dev, in English; circular. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
benchmark mmbench ${SPLIT:+--split "$SPLIT"} "$@"
