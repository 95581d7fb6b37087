#!/usr/bin/env bash
# Every part of bench.gpu, one after the other, each under its own limit and all under one; a part that fails or runs
# out of time leaves the others' numbers alone. Results appear as they come, in the folder given.
#
#   bash bench/gpu/run_all.sh OUT [PART ...]        parts (default: the first four): prepare, step, push, loop; step-keep
#                                                   (activations kept), push-host and loop-host (the generator's bases in
#                                                   host memory), loop-compiled, loop-two (GPU 0 trains, GPU 1 samples),
#                                                   ranks (two against one, fp32); PART@4b measures another shape
# Environment: DEVICE (cuda), DTYPE (bfloat16), SHAPE (1.7b), WORK (/dev/shm/bench-gpu), TOTAL_S (560), PYTHON (python3),
# REPEATS (6), EXTRA (further options of every part, e.g. a smaller --tokens)
set -u
out=${1:?usage: run_all.sh OUT [PART ...]}; shift
parts=("$@"); [ $# -gt 0 ] || parts=(prepare step push loop)
device=${DEVICE:-cuda} dtype=${DTYPE:-bfloat16} python=${PYTHON:-python3} work=${WORK:-/dev/shm/bench-gpu}
deadline=$(( SECONDS + ${TOTAL_S:-560} ))
mkdir -p "$out" "$work"
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
say() { echo "$(date +%T) $*" | tee -a "$out/progress.log"; }

limit_of() { # NAME SHAPE: seconds
  case $1@$2 in prepare@*) echo 90 ;; step*) echo 180 ;; push*) echo 170 ;; ranks@*) echo 120 ;; *@4b) echo 540 ;; *) echo 330 ;; esac
}

measure() { # NAME SHAPE: one part
  local name=$1 shape=$2 limit left allocator=
  limit=$(limit_of "$name" "$shape"); left=$(( deadline - SECONDS ))
  [ "$left" -ge 20 ] || { say "$name $shape not begun: no time left"; return; }
  [ "$limit" -le "$left" ] || limit=$left
  local options=() precision=$dtype
  case $name in
    step) options=(--limit $(( limit > 90 ? limit - 70 : limit ))) allocator=expandable_segments:True ;;
    step-keep) options=(--no-checkpointing --no-compile) allocator=expandable_segments:True ;;
    push-host) options=(--bases-on host) ;;
    loop-compiled) options=(--compile) ;;
    loop-host) options=(--compile --bases-on host) ;;
    loop-two) options=(--compile --gpus 0 1) ;;
    ranks) precision=float32 ;;
  esac
  say "$name $shape begins, at most $limit s"
  PYTORCH_CUDA_ALLOC_CONF=$allocator timeout -k 10 "$limit" "$python" -u -m bench.gpu "${name%%-*}" --shape "$shape" \
    --device "$device" --dtype "$precision" --work "$work" --out "$out/results.json" --repeats "${REPEATS:-6}" \
    "${options[@]}" ${EXTRA:-} >> "$out/parts.log" 2>&1
  say "$name $shape ended with code $?"
  case $name in loop*)
    tail -n 80 "$work/loop-$shape/run/trainer.log" "$work/loop-$shape"/stack/*.log > "$out/$name-$shape.log" 2>&1 ;;
  esac
  [ ! -f "$out/results.json" ] || "$python" -m bench.gpu table --out "$out/results.json" > "$out/table.md" 2>> "$out/progress.log"
}

for part in "${parts[@]}"; do
  shape=${SHAPE:-1.7b}; case $part in *@*) shape=${part#*@} ;; esac
  measure "${part%@*}" "$shape"
done
cat "$out/table.md"
