// One eye's view into a room with four spheres under a square lamp.
// `samples` shadow rays per pixel: GPU time grows linearly with it.

struct Eye {
    size: vec2<u32>,
    which: u32, // 0: left, 1: right
    samples: u32,
    pose: vec4<f32>, // yaw, pitch, x, time
}

@group(0) @binding(0) var<uniform> view: Eye;
// Both eyes side by side, packed rgba8.
@group(0) @binding(1) var<storage, read_write> pixels: array<u32>;

const ROOM = vec3<f32>(3.0, 2.0, 4.0); // half extents
const LAMP = vec3<f32>(0.0, 1.98, 0.5);

// Distance along the ray, or a large number.
fn hit_sphere(from_: vec3<f32>, dir: vec3<f32>, s: vec4<f32>) -> f32 {
    let oc = from_ - s.xyz;
    let b = dot(oc, dir);
    let h = b * b - dot(oc, oc) + s.w * s.w;
    let t = -b - sqrt(max(h, 0.0));
    return select(1e9, t, h > 0.0 && t > 1e-3);
}

// 1 where nothing stands within `reach` along the ray, else 0.
fn free_way(from_: vec3<f32>, dir: vec3<f32>, reach: f32, s: array<vec4<f32>, 4>) -> f32 {
    let nearest = min(
        min(hit_sphere(from_, dir, s[0]), hit_sphere(from_, dir, s[1])),
        min(hit_sphere(from_, dir, s[2]), hit_sphere(from_, dir, s[3])),
    );
    return select(1.0, 0.0, nearest < reach);
}

fn hash(n: u32) -> f32 {
    var x = n * 747796405u + 2891336453u;
    x = ((x >> ((x >> 28u) + 4u)) ^ x) * 277803737u;
    return f32((x >> 22u) ^ x) * 2.3283064e-10;
}

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) gid: vec3<u32>) {
    if any(gid.xy >= view.size) { return; }
    let size = vec2<f32>(view.size);
    let ndc = (vec2<f32>(gid.xy) + 0.5 - 0.5 * size) / (0.5 * size.y);
    let yaw = view.pose.x;
    let pitch = view.pose.y;
    var dir = normalize(vec3(ndc.x, -ndc.y, 1.3));
    dir = vec3(dir.x, dir.y * cos(pitch) + dir.z * sin(pitch), dir.z * cos(pitch) - dir.y * sin(pitch));
    dir = vec3(dir.x * cos(yaw) + dir.z * sin(yaw), dir.y, dir.z * cos(yaw) - dir.x * sin(yaw));
    let ipd = 0.064 * (f32(view.which) - 0.5);
    let origin = vec3(view.pose.z + ipd, -0.2, -3.2);

    // The room: the nearest wall in the ray's direction.
    let inv = 1.0 / (dir + vec3(1e-6));
    let far = (sign(inv) * ROOM - origin) * inv;
    var t = min(far.x, min(far.y, far.z));
    var at = origin + dir * t;
    var normal = vec3<f32>(0.0);
    var albedo = vec3<f32>(0.8, 0.78, 0.74);
    if t == far.x {
        normal = vec3(-sign(dir.x), 0.0, 0.0);
        albedo = select(vec3(0.25, 0.55, 0.62), vec3(0.75, 0.32, 0.25), dir.x < 0.0);
        let tile = abs(fract(at.zy * 1.0) - 0.5);
        albedo *= 0.82 + 0.18 * smoothstep(0.0, 0.03, 0.49 - max(tile.x, tile.y));
    } else if t == far.y {
        normal = vec3(0.0, -sign(dir.y), 0.0);
        let check = (i32(floor(at.x * 1.25)) + i32(floor(at.z * 1.25))) & 1;
        if dir.y < 0.0 { albedo = select(vec3(0.22), vec3(0.82), check == 0); }
    } else {
        normal = vec3(0.0, 0.0, -sign(dir.z));
        let ring = length(at.xy - vec2(0.0, 0.1));
        albedo = mix(vec3(0.28, 0.26, 0.42), vec3(0.85, 0.72, 0.42), smoothstep(0.04, 0.0, abs(fract(ring * 1.6) - 0.5) - 0.12));
    }
    let time = view.pose.w * 6.2831853;
    let spheres = array(
        vec4(-1.2, -1.1 + 0.25 * sin(time), 1.6, 0.9),
        vec4(1.1, -1.4, 1.0, 0.6),
        vec4(0.2 + cos(time), -1.65, 0.1 + 0.6 * sin(time), 0.35),
        vec4(1.7 * sin(time), 0.6, 2.6, 0.4),
    );
    let colours = array(
        vec3(0.93, 0.35, 0.30),
        vec3(0.40, 0.32, 0.86),
        vec3(0.22, 0.72, 0.58),
        vec3(0.90, 0.80, 0.25),
    );
    for (var i = 0; i < 4; i++) {
        let s = spheres[i];
        let d = hit_sphere(origin, dir, s);
        let nearer = d < t;
        t = select(t, d, nearer);
        at = select(at, origin + dir * d, vec3(nearer));
        normal = select(normal, (origin + dir * d - s.xyz) / s.w, vec3(nearer));
        albedo = select(albedo, colours[i], vec3(nearer));
    }

    // The lamp as an area: one jittered point of it per sample.
    let n = max(view.samples, 1u);
    var light = 0.0;
    for (var i = 0u; i < n; i++) {
        let seed = (gid.y * view.size.x + gid.x) * 64u + i;
        let point = LAMP + vec3(hash(seed) - 0.5, 0.0, hash(seed + 0x9e3779b9u) - 0.5) * 1.6;
        let way = point - at;
        let dist = length(way);
        let to_lamp = way / dist;
        let free = free_way(at + normal * 0.01, to_lamp, dist, spheres);
        light += free * max(dot(normal, to_lamp), 0.0) * max(to_lamp.y, 0.0) / (0.35 + 0.16 * dist * dist);
    }
    light /= f32(n);

    let half_way = normalize(normalize(LAMP - at) - dir);
    let shine = max(dot(normal, half_way), 0.0);
    let shine_8 = (shine * shine) * (shine * shine) * (shine * shine) * (shine * shine);
    let gloss = 0.5 * light * (shine_8 * shine_8) * (shine_8 * shine_8);
    var colour = albedo * (0.12 + 1.15 * light) + gloss;
    let lamp = max(abs(at.x - LAMP.x), abs(at.z - LAMP.z));
    if at.y > 1.97 && lamp < 0.8 { colour = vec3(1.0, 0.97, 0.88); }
    // A square root is near enough to the display's curve, and much cheaper.
    colour = sqrt(clamp(colour, vec3(0.0), vec3(1.0)));
    pixels[gid.y * view.size.x * 2u + view.which * view.size.x + gid.x] = pack4x8unorm(vec4(colour, 1.0));
}
