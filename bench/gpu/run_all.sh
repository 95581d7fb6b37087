#!/usr/bin/env bash
# Every part of bench.gpu, one after the other, each under its own limit and all under one; a part that fails or runs
# out of time leaves the others' numbers alone. Results appear as they come, in the folder given.
#
#   bash bench/gpu/run_all.sh OUT [PART ...]        parts: prepare step push loop loop-compiled step-keep (default: the
#                                                   first four); PART@4b measures another shape
# Environment: DEVICE (cuda), DTYPE (bfloat16), SHAPE (1.7b), WORK (/dev/shm/bench-gpu), TOTAL_S (540), PYTHON (python3),
# REPEATS (6), EXTRA (further options of every part, e.g. a smaller --tokens)
set -u
out=${1:?usage: run_all.sh OUT [PART ...]}; shift
parts=("$@"); [ $# -gt 0 ] || parts=(prepare step push loop)
device=${DEVICE:-cuda} dtype=${DTYPE:-bfloat16} python=${PYTHON:-python3} work=${WORK:-/dev/shm/bench-gpu}
deadline=$(( SECONDS + ${TOTAL_S:-540} ))
mkdir -p "$out" "$work"
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
say() { echo "$(date +%T) $*" | tee -a "$out/progress.log"; }

limit_of() { case $1 in prepare) echo 90 ;; step|step-keep) echo 180 ;; push) echo 170 ;; *) echo 300 ;; esac; }

measure() { # NAME SHAPE: one part
  local name=$1 shape=$2 limit left allocator=
  limit=$(limit_of "$name"); left=$(( deadline - SECONDS ))
  [ "$left" -ge 20 ] || { say "$name $shape not begun: no time left"; return; }
  [ "$limit" -le "$left" ] || limit=$left
  local options=()
  case $name in
    step) options=(--limit $(( limit > 90 ? limit - 70 : limit ))) allocator=expandable_segments:True ;;
    step-keep) options=(--no-checkpointing --no-compile) allocator=expandable_segments:True ;;
    loop-compiled) options=(--compile) ;;
  esac
  say "$name $shape begins, at most $limit s"
  PYTORCH_CUDA_ALLOC_CONF=$allocator timeout -k 10 "$limit" "$python" -u -m bench.gpu "${name%%-*}" --shape "$shape" \
    --device "$device" --dtype "$dtype" --work "$work" --out "$out/results.json" --repeats "${REPEATS:-6}" \
    "${options[@]}" ${EXTRA:-} >> "$out/parts.log" 2>&1
  say "$name $shape ended with code $?"
  case $name in loop*)
    cp "$work/loop-$shape/run/metrics.jsonl" "$out/loop-metrics.jsonl" 2>> "$out/progress.log"
    tail -c 200000 "$work/loop-$shape/run/trainer.log" > "$out/loop-trainer.log" 2>> "$out/progress.log"
    tail -n 80 "$work/loop-$shape"/stack/*.log > "$out/loop-stack.log" 2>> "$out/progress.log" ;;
  esac
  [ ! -f "$out/results.json" ] || "$python" -m bench.gpu table --out "$out/results.json" > "$out/table.md" 2>> "$out/progress.log"
}

for part in "${parts[@]}"; do
  shape=${SHAPE:-1.7b}; case $part in *@*) shape=${part#*@} ;; esac
  measure "${part%@*}" "$shape"
done
cat "$out/table.md"
