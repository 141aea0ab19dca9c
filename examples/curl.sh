#!/bin/sh
# Every route of the API with curl; pages (/, /docs) are for a browser.
set -eu
url=${GW_URL:-http://127.0.0.1:8000}
key=${GW_KEY:-none}
model=${GW_MODEL:-smollm2-135m}

ask() {  # method, path, more for curl
    method=$1 path=$2
    shift 2
    echo "--- $method $path"
    curl -sS --fail-with-body -X "$method" "$url$path" -H "authorization: Bearer $key" "$@"
    echo
}
get() { ask GET "$1"; }
post() { ask POST "$1" -H 'content-type: application/json' -d "$2"; }

get /thinking
post /generate '{"prompt": "The capital of France is", "max_tokens": 8}'
post /thinking '{"question": "What is 2 + 3?", "thinking_budget": 16, "max_tokens": 64}'
post /batch_generate '{"prompts": ["1, 2, 3,", "a, b, c,"], "max_tokens": 8}'
post /generate '{"prompt": "Once upon a time", "max_tokens": 8, "stream": true}'

# A thought that runs is told to answer, by its X-Request-Id, as soon as its first event is here.
id=curl-$$
curl -sSN "$url/thinking" -H "authorization: Bearer $key" -H 'content-type: application/json' -H "x-request-id: $id" \
    -d '{"question": "What is RSA?", "thinking_budget": 224, "max_tokens": 256, "stream": true}' | {
    read -r event
    printf '%s\n' "$event"
    post "/thinking/$id/answer_now" '{}'
    tail -n 3
}

hello='[{"role": "user", "content": "Hello"}]'
post /v1/chat/completions "{\"model\": \"$model\", \"messages\": $hello, \"max_tokens\": 32}"
post /v1/completions "{\"model\": \"$model\", \"prompt\": \"Once upon a time\", \"max_tokens\": 8}"
post /v1/responses "{\"model\": \"$model\", \"input\": \"Hello\", \"max_output_tokens\": 32}"
post /v1/messages "{\"model\": \"$model\", \"messages\": $hello, \"max_tokens\": 32}"
post /v1/messages/count_tokens "{\"model\": \"$model\", \"messages\": $hello}"
post /tokenize "{\"model\": \"$model\", \"prompt\": \"Hello\"}"
post /detokenize "{\"model\": \"$model\", \"tokens\": [100, 101]}"

get /v1/models
get "/v1/models/$model"
get /version
get /ping
post /ping '{}'
get /health
get /health/live
get /health/ready
get /stats

# The admin listener, with an admin key where the gateway has keys.
url=${GW_ADMIN_URL:-http://127.0.0.1:8001}
key=${GW_ADMIN_KEY:-none}
get /metrics
get /admin/models
get /admin/operations
get "/admin/usage?by=model&since=1h"
get "/admin/models/$model/adapters"
post /admin/reload '{}'
ask PUT /admin/log_level -H 'content-type: application/json' -d '{"level": "INFO"}'
if [ -n "${GW_SWITCH_TO:-}" ]; then  # another profile of the model: begun, looked at, called off
    begun=$(post "/admin/models/$model/switch" "{\"profile\": \"$GW_SWITCH_TO\"}")
    printf '%s\n' "$begun"
    operation=$(printf '%s' "$begun" | sed -n 's/.*"id": *"\([^"]*\)".*/\1/p')
    get "/admin/operations/$operation"
    post "/admin/operations/$operation/cancel" '{}'
fi
if [ -n "${GW_ADAPTER:-}" ]; then  # a folder in GATEWAY_ADAPTERS_DIR: loaded, and unloaded again
    post "/admin/models/$model/adapters" "{\"adapter\": \"$GW_ADAPTER\"}"
    ask DELETE "/admin/models/$model/adapters/$GW_ADAPTER" -H 'content-type: application/json'
fi
