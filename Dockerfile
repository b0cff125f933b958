# One image for every process in compose.yaml, the broker included: its wheel brings nats-server, so that broker and
# client versions are the ones that were tested together. It stands at the top because it copies from here.
FROM python:3.11-slim

# Nothing runs as root. The directories exist so that volumes mounted on them belong to this user.
RUN useradd --system --uid 10001 --create-home eventq \
 && install -d -o eventq -g eventq /data /blobs

WORKDIR /src
COPY pyproject.toml README.md ./
COPY eventq eventq
COPY events events
COPY projections projections
COPY workers workers
COPY services services

# EXTRAS is empty or, for GPU workers, [torch].
ARG EXTRAS=
RUN pip install --no-cache-dir ".${EXTRAS}"

USER eventq
WORKDIR /data
CMD ["eventq", "--help"]
