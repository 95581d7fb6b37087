# Grades programs written by the model. No torch, no tokenizer, no compiler, no shell tools beyond the base image's.
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install uv==0.13.9
COPY requirements/sandbox.in requirements/cpu.lock /requirements/
# cpu.lock pins every version and its hashes; sandbox.in says which of them belong here.
RUN python -m venv --without-pip /venv \
 && VIRTUAL_ENV=/venv uv pip install --no-cache --compile-bytecode -r /requirements/sandbox.in -c /requirements/cpu.lock

FROM python:3.11.14-slim-bookworm
RUN groupadd --gid 10001 grader && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin grader
COPY --from=build /venv /venv
WORKDIR /app
COPY common common
COPY tasks/dataset.py tasks/loophole_checks.py tasks/loopholes.py tasks/numbers.py tasks/
COPY services/__init__.py services/
COPY services/sandbox services/sandbox
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
USER 10001:10001
EXPOSE 8200
CMD ["python", "-m", "services.sandbox", "worker", "--require-isolation", "--set", "host=0.0.0.0", "--set", "port=8200"]
