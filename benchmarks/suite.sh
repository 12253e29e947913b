#!/usr/bin/env bash
# The measurements of docs/results. A result that is there is not made again, and a run that was stopped goes on
# where it was. Of two at once, each takes what the other has not begun; with one
# thread and one core each (OMP_NUM_THREADS=1 taskset -c 0 …) they are a fifth faster than one alone.
#
#     benchmarks/suite.sh DATA OUT        DATA holds pg19/, pubmedqa/ and babi/; OUT takes the JSON files
set -euo pipefail
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # as hiermem itself sets it: also for the scripts
data=$1 out=$2
pg19=$data/pg19 pubmedqa=$data/pubmedqa book=$data/pg19/test/9931.txt
mkdir -p "$out"

locked() { # NAME COMMAND...
    local name=$1 lock=$out/$1.lock
    shift
    exec 9>"$lock"
    if flock --nonblock 9; then
        echo "$name"
        "$@"
        rm -f "$lock"
    fi
    exec 9>&-
}
measure() { # NAME ARGUMENTS...
    locked "$1" hiermem "${@:2}" --out "$out/$1.json"
}

measure length-8k bench length --text "$book" --lengths 2048,8192 --repeats 3
measure length-32k bench length --text "$book" --lengths 32768
measure length-128k bench length --text "$book" --lengths 131072 --methods hiermem,full
measure length-256k bench length --text "$book" --lengths 262144 --methods hiermem --limit 3600

needles() { measure "needles-$1" eval needles --data "$pg19" --length 2000 --limit 100 "${@:2}"; }
for keep in 25 50; do
    for policy in window attention namm; do
        needles "$policy-$keep" --keep "0.$keep" --policy "$policy"
    done
done
measure needles-namm-compressed-25 eval needles --data "$pg19" --length 2000 --limit 24 --keep 0.25 --policy namm \
    --method compressed
needles namm-untrained-25 --keep 0.25 --policy namm --evictor none
needles full --keep 1 --method full
needles hiermem-25 --keep 0.25 --method hiermem

if [[ -e .venv-peers/ready ]]; then
    prompts=$out/needles.jsonl
    [[ -e $prompts ]] || hiermem eval needles --data "$pg19" --length 2000 --limit 100 --dump "$prompts"
    backbone=$(python -c 'from hiermem.bundled import BUNDLED_MODELS; print(BUNDLED_MODELS["smollm2"]())')
    peer() { # NAME OPTIONS...
        locked "$1" .venv-peers/bin/python benchmarks/kvpress_prompts.py --model "$backbone" \
            --prompts "$prompts" --limit 24 --out "$out/$1.json" "${@:2}"
    }
    for keep in 25 50; do
        for method in streamingllm snapkv tova expected-attention keydiff kvzip; do
            peer "needles-kvpress-$method-$keep" --method "$method" --keep "0.$keep"
        done
    done
else
    echo "kvpress is left out: make peers sets it up." >&2
fi

fused() { measure "pubmedqa-$1-$2" eval pubmedqa --data "$pubmedqa" --method "$1" --together "$2"; }
for system in hiermem bm25 truncated; do fused "$system" 50; done
for system in hiermem bm25 full; do fused "$system" 10; done
for system in hiermem bm25 right; do fused "$system" 1; done

for budget in 512 256 1024 2048; do
    for policy in window attention namm; do
        measure "pg19-$policy-$budget" eval pg19 --data "$pg19" --max-tokens 32768 \
            --policy "$policy" --budget "$budget"
    done
done
measure pg19-full eval pg19 --data "$pg19" --max-tokens 32768 --policy full --window 8192
beginnings() { measure "pg19-$1-8k" eval pg19 --data "$pg19" --max-tokens 8192 "${@:2}"; }
beginnings isolated --policy full --window 512
beginnings sensory --policy full --window 512 --overlap 32
beginnings hmt --model smollm2-hmt
beginnings full-memory --model smollm2-full
beginnings full-attention-memory --model smollm2-full --policy attention
measure interleaved-hmt eval interleaved --data "$pg19" --model smollm2-hmt --segments 12 --limit 2

babi() { measure "babi-$1" eval babi-long --haystack "$book" --data "$data/babi" --seed 1 "${@:2}"; }
for system in hiermem bm25 full; do babi "$system" --lengths 0,1000,8000 --limit 10 --method "$system"; done
babi hiermem-128k --lengths 32000,128000 --limit 2
babi bm25-128k --lengths 32000,128000 --limit 2 --method bm25
for system in hiermem bm25 full; do
    measure "hashhop-$system" eval hashhop --lengths 1000,8000 --limit 5 --seed 1 --method "$system"
    measure "mqar-$system" eval mqar --lengths 0,1000,8000 --limit 3 --seed 1 --method "$system"
done

# Half of the cache, decided before the questions are seen.
measure pubmedqa-namm-10 eval pubmedqa --data "$pubmedqa" --together 10 --method pruned --policy namm \
    --keep 0.5
babi namm --lengths 8000 --limit 10 --method pruned --policy namm --keep 0.5

measure passkey eval passkey --haystack "$book" --lengths 1024,8192,32768 --limit 20 --seed 1
measure retrieval-reranked eval retrieval --data "$pubmedqa" --rerank 5

# A third of the heads replaced, and not.
for model in smollm2 smollm2-mamba; do
    name=$([[ $model == smollm2 ]] && echo unmodified || echo trained)
    beginning=(eval pg19 --data "$pg19" --max-tokens 8192 --model "$model" --dtype float32)
    measure "pg19-heads-$name-2k" "${beginning[@]}" --policy none --window 2048
    measure "pg19-heads-$name-stream" "${beginning[@]}" --policy attention --budget 512
    measure "passkey-heads-$name" eval passkey --haystack "$book" --lengths 2048 --limit 20 --method pruned \
        --policy none --model "$model" --dtype bfloat16
done
measure needles-mamba-whole eval needles --data "$pg19" --keep 1 --policy none --model smollm2-mamba --limit 24
[[ -e $out/replaced.jsonl ]] || locked replaced bash -c 'python benchmarks/replaced.py smollm2-mamba \
    --lengths 2048 8192 32768 --dtype bfloat16 > "$1.part" && mv "$1.part" "$1"' _ "$out/replaced.jsonl"
